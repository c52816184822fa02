-- Run at each boot as the database's superuser, so it says what must be, not what to do: what is there already stays.
CREATE TABLE IF NOT EXISTS donation (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received timestamptz NOT NULL DEFAULT now(),
    name     text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    email    text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
    cents    integer NOT NULL CHECK (cents BETWEEN 100 AND 10000000),
    message  text NOT NULL CHECK (length(message) <= 1000)
);

SELECT 'CREATE ROLE ' || name || ' LOGIN'
    FROM (VALUES ('web'), ('bookkeeper')) AS wanted (name)
    WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO web, bookkeeper;
GRANT INSERT (name, email, cents, message) ON donation TO web;
GRANT SELECT ON donation TO bookkeeper;

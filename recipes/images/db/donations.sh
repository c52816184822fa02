#!/bin/sh
# Makes the database of the donations what the image says, and draws the bookkeeper's password at the first boot. It is kept on
# the volume and said on this guest's console, which only who holds the rack can read.
set -eu

as_postgres() { runuser -u postgres -- "$@"; }

as_postgres psql -qAt -c "SELECT 1 FROM pg_database WHERE datname = 'donations'" | grep -q 1 ||
    as_postgres createdb --encoding UTF8 donations
as_postgres psql -q -v ON_ERROR_STOP=1 -d donations -f /etc/donations/schema.sql

kept=/var/lib/postgresql/bookkeeper.password
if [ ! -s $kept ]; then
    umask 077
    password=$(head -c 15 /dev/urandom | base32 | tr A-Z a-z)
    printf "ALTER ROLE bookkeeper PASSWORD '%s';\n" "$password" | as_postgres psql -q -v ON_ERROR_STOP=1
    # Under its name only when it is whole: a power cut must not leave half a password.
    echo "$password" > $kept.new
    sync $kept.new
    mv $kept.new $kept
fi
echo "the password of bookkeeper is $(cat $kept)"

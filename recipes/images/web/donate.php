<?php
// Takes the donation form of index.html, checks it and adds a row to the database. What it says is plain text: nothing of what
// came in is ever shown again.
declare(strict_types=1);

const DATABASE = 'host={{ guests.db.addresses.data }} dbname=donations user=web connect_timeout=5';

/** Ends the request with this status and one sentence. */
function answer(int $status, string $text): never
{
    http_response_code($status);
    header('Content-Type: text/plain; charset=utf-8');
    exit("$text\n");
}

/** The text of a field, without blanks around it. An array or broken UTF-8 is no text. */
function field(string $name, int $least, int $most): string
{
    $value = $_POST[$name] ?? '';
    if (!is_string($value) || preg_match('/^\s*(.*?)\s*$/su', $value, $found) !== 1 || str_contains($value, "\0")) {
        answer(400, "The field “{$name}” is not text.");
    }
    $length = preg_match_all('/./su', $found[1]);
    if ($length < $least || $length > $most) {
        answer(400, "The field “{$name}” has $length characters; it needs $least to $most.");
    }
    return $found[1];
}

/** Euros with or without cents, as people write them, in cents. */
function cents(string $amount): int
{
    if (preg_match('/^(\d{1,6})(?:[.,](\d{2}))?$/', $amount, $found) !== 1) {
        answer(400, 'The amount is a number of euros, such as 20 or 7.50.');
    }
    $cents = (int) $found[1] * 100 + (int) ($found[2] ?? 0);
    if ($cents < 100 || $cents > 10_000_000) {
        answer(400, 'The amount can be 1 to 100000 euros.');
    }
    return $cents;
}

$name = field('name', 1, 100);
$email = field('email', 3, 254);
if (filter_var($email, FILTER_VALIDATE_EMAIL) === false) {
    answer(400, 'The field “email” is not an e-mail address.');
}
$cents = cents(field('amount', 1, 9));
$message = field('message', 0, 1000);

// PHP's warnings go to the log; the visitor is told what it means.
$database = pg_connect(DATABASE);
$values = [$name, $email, $cents, $message];
$insert = 'INSERT INTO donation (name, email, cents, message) VALUES ($1, $2, $3, $4)';
if ($database === false || pg_query_params($database, $insert, $values) === false) {
    header('Retry-After: 60');
    answer(503, 'Your donation could not be recorded: our database does not answer. Nothing is lost but this form; please try again in a minute.');
}
header('Location: /thanks.html', true, 303);

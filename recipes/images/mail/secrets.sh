#!/bin/sh
# Draws what may not be in an image: the key for TLS, and a password for each mailbox. All of it lies on the volume; what is there
# already stays. Passwords are said on this guest's console, which only who holds the rack can read. They stand in the file as they
# are: it belongs to root on the volume that holds the mail itself, and they are of no use anywhere else.
set -eu
umask 077
cd /var/lib/mail
install -d -o vmail -g vmail -m 0700 boxes

if [ ! -s tls/key.pem ]; then
    rm -rf tls.new
    mkdir -m 0755 tls.new
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=mail.{{ rack.domain }} \
        -addext subjectAltName=DNS:mail.{{ rack.domain }} -keyout tls.new/key.pem -out tls.new/cert.pem
    sync tls.new/*
    rm -rf tls
    mv tls.new tls
fi

touch passwords
chgrp dovecot passwords
chmod 0640 passwords
for person in {{ vars.people | join(' ') }}; do
    if ! grep -q "^$person:" passwords; then
        printf '%s:{PLAIN}%s\n' "$person" "$(head -c 15 /dev/urandom | base32 | tr A-Z a-z)" >> passwords
        sync passwords
    fi
    echo "the password of $person is $(sed -n "s/^$person:{PLAIN}//p" passwords)"
done

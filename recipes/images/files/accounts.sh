#!/bin/sh
# Gives each member of `office` an account with a first password, drawn at the first boot and said on this guest's console, which
# only who holds the rack can read.
set -eu
umask 077
chgrp office /srv/office
chmod 2770 /srv/office
kept=/var/lib/samba/private/first-passwords
mkdir -p /var/lib/samba/private
touch $kept
chmod 0600 $kept

for person in $(getent group office | cut -d: -f4 | tr , ' '); do
    if ! pdbedit --user "$person" > /dev/null 2>&1; then
        password=$(head -c 15 /dev/urandom | base32 | tr A-Z a-z)
        # Written down before it counts: a power cut must not leave an account whose password nobody knows.
        sed -i "/^$person /d" $kept
        echo "$person $password" >> $kept
        sync $kept
        printf '%s\n%s\n' "$password" "$password" | smbpasswd -a -s "$person"
    fi
    echo "the first password of $person is $(sed -n "s/^$person //p" $kept)"
done

#!/bin/sh
# Makes the keys and signed files in this folder with GnuPG, for the tests of src/archive/{keys,release}.rs. Every key is
# new each time, so run it only to add a case, and commit all that it writes. The secret keys are thrown away.
set -eu
cd "$(dirname "$0")"
GNUPGHOME=$(mktemp -d)
export GNUPGHOME
trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT

at() { # at DATE GPG-ARGUMENTS...
    when=$1; shift
    gpg --batch --quiet --yes --no-tty --passphrase '' --pinentry-mode loopback --faked-system-time "$when!" "$@"
}
fingerprint() { gpg --batch --with-colons --list-keys "$1" | awk -F: '$1 == "fpr" { print $10; exit }'; }
subkey() { gpg --batch --with-colons --list-keys "$1" | awk -F: '$1 == "sub" { s = 1 } s && $1 == "fpr" { print $10; exit }'; }

BORN=20240101T000000 SIGNED=20250601T000000 SOON=20250601T120000
key() { # key NAME PRIMARY-USAGE EXPIRY [SUBKEY-EXPIRY]
    at $BORN --quick-generate-key "$1" ed25519 "$2" "$3"
    if [ $# -gt 3 ]; then at $BORN --quick-add-key "$(fingerprint "=$1")" ed25519 sign "$4"; fi
}
sign() { # sign KEY INPUT OUTPUT [GPG-ARGUMENTS...]
    by=$1 input=$2 output=$3; shift 3
    at $SIGNED "$@" --local-user "$by" --output "$output" --clear-sign "$input"
}
release() { # release FILE CODENAME DATE VALID-UNTIL
    { printf 'Origin: Debian\nSuite: stable\nCodename: %s\nDate: %s\n' "$2" "$3"
      if [ -n "$4" ]; then printf 'Valid-Until: %s\n' "$4"; fi
      printf 'Acquire-By-Hash: yes\nSHA256:\n %064d 17 main/binary-amd64/Packages\n %064d 9 main/binary-amd64/Packages.xz\n' 1 2
    } > "$1"
}

TEXT=$GNUPGHOME/text
release "$TEXT" trixie 'Sun, 01 Jun 2025 00:00:00 UTC' 'Sun, 08 Jun 2025 00:00:00 UTC'
key subkey cert 0 0
key primary cert,sign 0
key other cert,sign 0
key expired-primary cert "$SOON" 0
key expired-subkey cert 0 "$SOON"
key revoked-primary cert 0 0
key revoked-subkey cert 0 0
for name in subkey primary other expired-primary expired-subkey revoked-primary revoked-subkey; do
    sign "=$name" "$TEXT" "$name.InRelease"
done
sign =primary "$TEXT" sha1.InRelease --digest-algo SHA1
sign =primary "$TEXT" expired-signature.InRelease --default-sig-expire "$SOON"
release "$TEXT" trixie 'Sun, 01 Jun 2025 00:00:00 UTC' 'Mon, 02 Jun 2025 00:00:00 UTC'
sign =primary "$TEXT" expired.InRelease
release "$TEXT" trixie 'Tue, 03 Jun 2025 00:00:00 UTC' ''
sign =primary "$TEXT" future.InRelease
release "$TEXT" bookworm 'Sun, 01 Jun 2025 00:00:00 UTC' ''
sign =primary "$TEXT" bookworm.InRelease
release "$TEXT" trixie 'Sun, 01 Jun 2025 00:00:00 UTC' ''
printf '\nCodename: trixie\n' >> "$TEXT"
sign =primary "$TEXT" two-paragraphs.InRelease

# A whole small archive: each suite has one package, and a newer version of what the suite before it has; and one package
# of firmware.
sum() { sha256sum < "$1" | cut -d ' ' -f 1; }
size() { stat -c %s "$1"; }
number=0
for suite in trixie trixie-updates trixie-security; do
    number=$((number + 1))
    for package in "only-in-$suite" shared; do
        printf 'Package: %s\nVersion: 1.%d\nArchitecture: amd64\nEssential: yes\nFilename: pool/main/%s_%d.deb\nSize: 1\nSHA256: %064d\n\n' \
            "$package" $number "$package" $number $number
    done > "$suite.Packages"
    printf 'Package: firmware-of-%s\nVersion: 1.%d\nArchitecture: all\nFilename: pool/non-free-firmware/%s.deb\nSize: 1\nSHA256: %064d\n\n' \
        "$suite" $number "$suite" $number > "$suite.Firmware"
    xz -k -f "$suite.Packages" "$suite.Firmware"
    { printf 'Origin: Debian\nCodename: %s\nDate: Sun, 01 Jun 2025 0%d:00:00 UTC\nAcquire-By-Hash: yes\nSHA256:\n' $suite $number
      for end in '' .xz; do
          printf ' %s %s main/binary-amd64/Packages%s\n' "$(sum "$suite.Packages$end")" "$(size "$suite.Packages$end")" "$end"
          printf ' %s %s non-free-firmware/binary-amd64/Packages%s\n' \
              "$(sum "$suite.Firmware$end")" "$(size "$suite.Firmware$end")" "$end"
      done
    } > "$TEXT"
    sign =primary "$TEXT" "$suite.InRelease"
    rm "$suite.Packages" "$suite.Firmware"
done
# A mirror of a part of Debian.
sed '/non-free-firmware/d' < "$TEXT" > "$TEXT.part"
sign =primary "$TEXT.part" without-firmware.InRelease

revoke() { # revoke EDIT-COMMANDS...
    name=$1; shift
    printf '%s\n' "$@" | at $SIGNED --command-fd 0 --edit-key "=$name"
}
revoke revoked-subkey 'key 1' revkey y 1 '' y save
revoke revoked-primary revkey y 1 '' y save
for name in subkey primary other expired-primary expired-subkey revoked-primary revoked-subkey; do
    gpg --batch --armor --export "=$name" > "$name.asc"
done

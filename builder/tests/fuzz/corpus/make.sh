#!/bin/bash
# Makes the files of this corpus that are not text, by other people's programs: run in an empty folder, then copy what is wanted. What made a
# reader fail is put beside them by hand.
set -euo pipefail
export SOURCE_DATE_EPOCH=1700000000
mkdir -p deb erofs gpt oci qcow2 tar root/etc root/usr/bin pkg/DEBIAN pkg/usr/share/doc/small
printf 'root:x:0:0::/root:/bin/sh\n' >root/etc/passwd
printf '#!/bin/sh\n' >root/app
chmod 755 root/app
ln -s app root/link
ln root/app root/usr/bin/twin
setfattr -n user.note -v note root/app
printf 'Package: small\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@localhost>\nDepends: a | b (>= 1)\nDescription: a\n' >pkg/DEBIAN/control
printf '/etc/small\n' >pkg/DEBIAN/conffiles
mkdir pkg/etc
echo small >pkg/etc/small
for kind in none gzip xz zstd; do dpkg-deb --root-owner-group -Z"$kind" --build pkg "deb/$kind.deb" >/dev/null; done
pack() { tar --sort=name --mtime=@1700000000 --owner=0 --group=0 --numeric-owner "$@" -C root .; }
pack --format=gnu -cf tar/gnu.tar
pack --format=pax --xattrs -cf tar/pax.tar
gzip -9nk tar/gnu.tar
zstd -q tar/pax.tar
xz -k tar/gnu.tar
truncate -s 300K disk
printf 'the same words %.0s' {1..900} | dd of=disk bs=1K seek=10 conv=notrunc status=none
convert() { qemu-img convert -f raw -O qcow2 "$@"; }
convert -c -o cluster_size=4K disk qcow2/zlib
convert -c -o cluster_size=4K,compression_type=zstd disk qcow2/zstd
convert -c -o cluster_size=512 disk qcow2/small
convert -o compat=0.10,cluster_size=4K disk qcow2/old
qemu-img snapshot -c one qcow2/zlib
qemu-img create -q -f qcow2 -o cluster_size=4K -b ../disk -F raw qcow2/backing
qemu-img create -q -f qcow2 -o cluster_size=4K,data_file=elsewhere qcow2/external 1M
truncate -s 100K gpt/two
sgdisk -a 1 -n 1:34:60 -t 1:ef00 -n 2:61:0 -c 2:data gpt/two >/dev/null
truncate -s 50K gpt/none
cp gpt/two gpt/backup
dd if=/dev/zero of=gpt/backup bs=512 seek=1 count=1 conv=notrunc status=none
umoci init --layout layout
umoci new --image layout:one
umoci insert --rootless --image layout:one root/app /app
umoci gc --layout layout
tar --format=gnu --sort=name --mtime=@1700000000 --owner=0 --group=0 -cf oci/layout.tar -C layout .
skopeo --insecure-policy copy -q oci:layout:one docker-archive:oci/docker.tar:one:1

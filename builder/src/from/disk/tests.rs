//! Disks as `qemu-img` makes them; what it makes raw is what must come out.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

use rackstick_image::packed;

use super::*;

fn run(folder: &Path, text: &str) {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", text]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A raw disk of 48 MiB with text that compresses, bytes that don't, a stretch of one value, and holes, all beside
/// clusters' borders.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let file = File::create(folder.path().join("raw")).unwrap();
    file.set_len((48 << 20) + 512).unwrap();
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(300_000).collect();
    file.write_all_at(&noise, 5000).unwrap();
    file.write_all_at(&"the same words ".repeat(100_000).into_bytes(), 3 << 20).unwrap();
    file.write_all_at(&vec![0xff; 200_000], (20 << 20) + 77).unwrap();
    file.write_all_at(b"the end", (48 << 20) + 500).unwrap();
    folder
}

fn packed(path: &Path) -> Result<Vec<u8>, DiskError> {
    pack(&File::open(path).unwrap(), Vec::new()).map(|(_, bytes)| bytes)
}

#[test]
fn every_kind_of_qcow2_gives_the_same_bytes_as_the_raw_disk() {
    let folder = folder();
    let expected = packed(&folder.path().join("raw")).unwrap();
    for options in [
        "",
        "-c",
        "-o compat=0.10",
        "-c -o compat=0.10",
        "-c -o compression_type=zstd",
        "-o cluster_size=512",
        "-c -o cluster_size=2M,compression_type=zstd",
        "-c -o cluster_size=4k",
        "-o preallocation=full",
        "-S 0",
        "-o lazy_refcounts=on",
    ] {
        run(folder.path(), &format!("rm -f disk && qemu-img convert -f raw -O qcow2 {options} raw disk"));
        let found = packed(&folder.path().join("disk")).unwrap_or_else(|error| panic!("{options}: the file {error}"));
        assert!(found == expected, "{options}");
    }
    // What other images keep beside the disk's own state is not looked at.
    run(
        folder.path(),
        "qemu-img convert -O qcow2 raw disk && qemu-img snapshot -c one disk && qemu-io -c 'write -P 9 0 1M' disk",
    );
    run(folder.path(), "qemu-img convert -O raw disk now");
    let (found, now) = (packed(&folder.path().join("disk")).unwrap(), packed(&folder.path().join("now")).unwrap());
    assert!(found == now && found != expected);

    // And a packed disk is the raw one again, with its holes.
    fs::write(folder.path().join("packed"), &expected).unwrap();
    let out = File::create(folder.path().join("out")).unwrap();
    packed::unpack(&File::open(folder.path().join("packed")).unwrap(), &out).unwrap();
    run(folder.path(), "cmp raw out");
    assert!(out.metadata().unwrap().blocks() * 512 < 4 << 20);
}

#[test]
fn what_is_not_all_in_one_file_or_not_readable_is_refused_with_its_reason() {
    let folder = folder();
    for (make, reason) in [
        ("qemu-img create -q -f qcow2 -b raw -F raw disk", "backing file, `raw`"),
        ("qemu-img create -q -f qcow2 -o data_file=elsewhere disk 1M", "in another file, `elsewhere`"),
        ("qemu-img create -q -f qcow2 -o extended_l2=on disk 1M", "needs extended L2 entries"),
        (
            "qemu-img create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s disk 1M",
            "is encrypted",
        ),
        ("qemu-img convert -O vmdk raw disk", "a disk of VMware"),
        ("qemu-img convert -O vdi raw disk", "a disk of VirtualBox"),
        ("qemu-img convert -O vhdx raw disk", "a disk of Hyper-V"),
        ("gzip -c raw > disk", "packed with gzip"),
        ("head -c 1000 raw > disk", "a disk of 1000 bytes can't be"),
        ("true > disk", "a disk of 0 bytes can't be"),
        ("printf 'QFI\\373\\0\\0\\0\\001' > disk; truncate -s 1M disk", "version 1"),
        ("qemu-img create -q -f qcow2 disk 9T", "at most 8 TiB"),
        ("qemu-img convert -O qcow2 raw disk; truncate -s 300K disk", "lies beside the file"),
    ] {
        run(folder.path(), &format!("rm -f disk elsewhere && {make}"));
        let error = packed(&folder.path().join("disk")).expect_err(make).to_string();
        assert!(error.contains(reason), "{make}: {error}");
    }
}

/// A qcow2 of which every table names the same tables again: 128 GiB of 32 KiB.
#[test]
fn tables_that_name_the_same_clusters_again_and_again_end_soon() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    run(folder.path(), "qemu-img create -q -f qcow2 disk 128G && qemu-io -c 'write -P 7 0 64k' disk");
    let mut bytes = fs::read(&path).unwrap();
    let at = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = at(&bytes, 40) as usize;
    let l2 = (at(&bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let [first, data] = [l1, l2].map(|place| bytes[place..place + 8].to_vec());
    (0..256).for_each(|number| bytes[l1 + number * 8..][..8].copy_from_slice(&first));
    (0..8192).for_each(|number| bytes[l2 + number * 8..][..8].copy_from_slice(&data));
    fs::write(&path, bytes).unwrap();
    let error = pack(&File::open(&path).unwrap(), io::sink()).unwrap_err();
    assert!(matches!(error, DiskError::Qcow2(Qcow2Error::Bomb(_))), "{error}");
}

//! Looks into a disk image with other people's tools: sgdisk and debugfs.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::tool;

/// Bytes of a logical sector of our images.
const SECTOR: u64 = 512;
/// Bytes of an ext4 block of our data partition, and of an fs-verity block.
pub const BLOCK: u64 = 4096;

/// A partition inside a disk image.
#[derive(Debug, Clone)]
pub struct Partition {
    disk: PathBuf,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

impl Partition {
    /// The partition with this number, from 1.
    pub fn of(disk: &Path, number: u32) -> Self {
        let said = tool::ask("sgdisk", [format!("--info={number}").as_ref(), disk.as_os_str()]);
        let sector = |label: &str| -> u64 {
            let rest = said.lines().find_map(|line| line.strip_prefix(label));
            let number = rest.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("sgdisk says nothing of `{label}`:\n{said}"))
        };
        let (first, last) = (sector("First sector: "), sector("Last sector: "));
        Self { disk: disk.to_owned(), offset: first * SECTOR, length: (last + 1 - first) * SECTOR }
    }

    /// How e2fsprogs name it.
    pub fn for_e2fsprogs(&self) -> String {
        format!("{}?offset={}", self.disk.display(), self.offset)
    }

    /// How mtools name it.
    pub fn for_mtools(&self) -> String {
        format!("{}@@{}", self.disk.display(), self.offset)
    }

    /// Runs one request of debugfs, read-only.
    pub fn debugfs(&self, request: &str) -> String {
        tool::ask("debugfs", ["-R", request, &self.for_e2fsprogs()])
    }

    /// Where block `logical` of a file of the ext4 file system lies, in bytes from the disk's begin.
    pub fn place_of_block(&self, file: &str, logical: u64) -> u64 {
        let said = self.debugfs(&format!("bmap {file} {logical}"));
        let block: u64 =
            said.trim().parse().unwrap_or_else(|_| panic!("debugfs does not know block {logical} of {file}: {said}"));
        assert_ne!(block, 0, "block {logical} of {file} is a hole");
        self.offset + block * BLOCK
    }

    /// Copies a file out of the ext4 file system.
    pub fn read_file(&self, file: &str) -> Vec<u8> {
        let copy = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        self.debugfs(&format!("dump {file} {}", copy.path().display()));
        fs::read(copy.path()).expect("a temporary file can be read")
    }

    /// What a script of the shell prints in the mounted ext4 file system; needs root. `options` as for mount(8).
    pub fn within(&self, options: &str, script: &str) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let options = format!("loop,offset={},sizelimit={},{options}", self.offset, self.length);
        // In a mount namespace of its own, so that nothing stays mounted whatever happens.
        let around = r#"mount -t ext4 -o "$1" "$2" "$3"; cd "$3"; eval "$4"; cd /; umount "$3""#;
        tool::ask(
            "unshare",
            [
                OsStr::new("-m"),
                "sh".as_ref(),
                "-ec".as_ref(),
                around.as_ref(),
                "sh".as_ref(),
                options.as_ref(),
                self.disk.as_os_str(),
                folder.path().as_os_str(),
                script.as_ref(),
            ],
        )
    }

    /// Whether the same partition of another disk holds the same bytes.
    pub fn same_bytes(&self, other: &Partition) -> bool {
        assert_eq!(self.length, other.length);
        let skip = format!("--ignore-initial={}:{}", self.offset, other.offset);
        let bytes = format!("--bytes={}", self.length);
        let said = tool::run(std::process::Command::new("cmp").args([&skip, &bytes]).args([&self.disk, &other.disk]));
        assert!(said.stderr.is_empty(), "{}", said.stderr);
        said.success
    }
}

/// Flips the lowest bit of one byte of a disk image.
pub fn flip_bit(disk: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(disk).expect("a copy can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("the byte lies in the disk");
    file.write_all_at(&[byte[0] ^ 1], place).expect("a copy can be written");
    file.sync_all().expect("a copy can be written");
}

/// Overwrites a stretch of a disk image.
pub fn overwrite(disk: &Path, place: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(disk).expect("a copy can be opened");
    file.write_all_at(bytes, place).expect("a copy can be written");
    file.sync_all().expect("a copy can be written");
}

//! The EFI system partition: a FAT32 file system made in one go from a list of files, every file in one piece;
//! [`read`] reads any.
//! Follows the UEFI Specification 2.10, section 13.3, and Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
//!
//! Own code, because `fatfs` 0.3.6 gives `.` and `..` long names: then they are not the first two entries of their
//! directory, which `fsck.fat` rightly calls damage.

mod directory;
mod format;
pub mod read;

use std::{fs::File, io, os::unix::fs::FileExt};

use self::{
    directory::Directories,
    format::{CLUSTER_SIZE, Geometry},
};
use crate::{pieces::Pieces, sector::SectorSize, source::SourceError};

pub use format::SIZE;

/// Most files: keeps every directory below FAT's 65,536 entries, whatever the names.
const MAX_FILES: usize = 3000;

/// Why an ESP could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EspError {
    /// Two files have one path, or a file stands where a folder is needed; FAT does not tell upper from lower case.
    #[error("`{0}` would be twice in the ESP (upper and lower case are the same there): one of the two must go")]
    Duplicate(String),
    /// FAT has no such name.
    #[error(
        "`{0}` cannot be a path in the ESP: parts have 1 to 255 printable ASCII characters without \"*:<>?\\|, no dot or space at the end"
    )]
    BadPath(String),
    /// More files than the ESP is made for.
    #[error("the ESP would have {0} files, but {MAX_FILES} are possible")]
    TooMany(usize),
    /// More than fits.
    #[error("the ESP has room for {room} bytes, but its files need {needed}: make the host's UKI smaller")]
    Full {
        /// Bytes of all files and folders, in whole clusters.
        needed: u64,
        /// Bytes of all clusters.
        room: u64,
    },
    /// A source could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file system could not be written.
    #[error("cannot write the ESP: {0}")]
    Io(#[from] io::Error),
}

/// One file of the ESP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspFile {
    /// Path with slashes, `EFI/BOOT/BOOTX64.EFI`. Folders are made.
    pub path: String,
    /// Its bytes.
    pub content: Pieces,
}

/// Makes the file system in [`SIZE`] bytes of `disk` from byte `start` on, which must be holes or zeroes. All times in
/// it are 1980-01-01, the earliest that FAT knows.
pub fn write(disk: &File, sector: SectorSize, start: u64, volume_id: u32, files: &[EspFile]) -> Result<(), EspError> {
    if files.len() > MAX_FILES {
        return Err(EspError::TooMany(files.len()));
    }
    let mut sorted: Vec<&EspFile> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut directories = Directories::new();
    for (index, file) in sorted.iter().enumerate() {
        directories.insert(&file.path, index)?;
    }
    let sizes: Vec<u64> = sorted.iter().map(|file| file.content.size()).collect();
    let (chains, needed) = directories.place(&sizes);
    let geometry = Geometry::new(sector);
    let room = u64::from(geometry.clusters) * CLUSTER_SIZE;
    if needed > room {
        return Err(EspError::Full { needed, room });
    }
    for (index, file) in sorted.iter().enumerate() {
        copy(&file.content, disk, start + geometry.offset(chains.files[index].first))?;
    }
    for (cluster, bytes) in directories.encode(&chains, &sizes) {
        disk.write_all_at(&bytes, start + geometry.offset(cluster))?;
    }
    let used = (needed / CLUSTER_SIZE) as u32;
    format::write_head(&geometry, disk, start, volume_id, chains.all(), used)?;
    Ok(())
}

fn copy(content: &Pieces, disk: &File, mut at: u64) -> Result<(), EspError> {
    content.each(|bytes| {
        // Zeroes are there already.
        if bytes.iter().any(|&byte| byte != 0) {
            disk.write_all_at(bytes, at)?;
        }
        at += bytes.len() as u64;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt, path::Path};

    use super::*;
    use crate::{
        source::Source,
        testing::{assert_same, run},
    };

    const SECTOR: SectorSize = SectorSize::B512;

    fn make(path: &Path, files: &[EspFile]) -> Result<(), EspError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(SIZE).unwrap();
        write(&file, SECTOR, 0, 0x1234_abcd, files)
    }

    fn file(path: &str, source: Source) -> EspFile {
        EspFile { path: path.into(), content: source.into() }
    }

    #[test]
    fn fsck_fat_and_mtools_accept_it_and_read_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let uki = folder.path().join("uki");
        fs::write(&uki, (0..20_000_003_u32).map(|at| (at >> 5) as u8).collect::<Vec<_>>()).unwrap();
        let files = [
            file("EFI/Linux/rackstick_2026.11.1+3.efi", Source::file(&uki).unwrap()),
            file("EFI/BOOT/BOOTX64.EFI", Source::Bytes(vec![7; 100_000])),
            file("loader/loader.conf", Source::Bytes(b"timeout 0\n".to_vec())),
            file("loader/empty", Source::Bytes(Vec::new())),
            file("efi/boot/fallback.with.dots", Source::Bytes(vec![3; 4097])),
        ]
        .into_iter()
        // Aliases that collide, and a folder of more than one cluster.
        .chain((0..300).map(|n| file(&format!("many/a name of some length {n}.conf"), Source::Bytes(vec![n as u8]))))
        .collect::<Vec<_>>();
        let image = folder.path().join("esp");
        make(&image, &files).unwrap();
        let name = image.to_str().unwrap();
        let checked = run("fsck.fat", ["-n", "-v", name]);
        assert!(checked.contains("4096 bytes per cluster") && checked.contains("311 files"), "{checked}");
        run(
            "mcopy",
            ["-o", "-i", name, "::many/a name of some length 299.conf", folder.path().join("299").to_str().unwrap()],
        );
        assert_eq!(fs::read(folder.path().join("299")).unwrap(), [43]);
        let listed = run("mdir", ["-i", name, "-/", "-b", "::"]);
        assert!(listed.contains("EFI/Linux/rackstick_2026.11.1+3.efi"), "{listed}");
        assert!(run("mlabel", ["-i", name, "-s", "::"]).contains("ESP"));
        let copy = folder.path().join("copy");
        run("mcopy", ["-i", name, "::EFI/Linux/rackstick_2026.11.1+3.efi", copy.to_str().unwrap()]);
        run("cmp", [&uki, &copy]);
        run("mcopy", ["-o", "-i", name, "::loader/loader.conf", copy.to_str().unwrap()]);
        assert_eq!(fs::read(&copy).unwrap(), b"timeout 0\n");

        let used = fs::metadata(&image).unwrap().blocks() * 512;
        assert!(used < 25 << 20, "{used} bytes used");
        let again = folder.path().join("again");
        let reversed: Vec<EspFile> = files.into_iter().rev().collect();
        make(&again, &reversed).unwrap();
        assert_same(&image, &again);
    }

    #[test]
    fn too_much_and_names_that_are_one_in_fat_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("esp");
        let same = [file("EFI/a.efi", Source::Bytes(vec![])), file("efi/A.EFI", Source::Bytes(vec![]))];
        assert!(matches!(make(&image, &same), Err(EspError::Duplicate(_))));
        let huge = [file("a", Source::Path { path: "/nowhere".into(), size: SIZE - (1 << 20) })];
        assert!(matches!(make(&image, &huge), Err(EspError::Full { .. })));
        for bad in ["a:b", "", "a//b", "/a", "..", "a.", "b ", "\u{e4}", &"x".repeat(256)] {
            assert!(matches!(make(&image, &[file(bad, Source::Bytes(vec![]))]), Err(EspError::BadPath(_))), "{bad}");
        }
        let clash = [file("a", Source::Bytes(vec![])), file("A/b", Source::Bytes(vec![]))];
        assert!(matches!(make(&image, &clash), Err(EspError::Duplicate(_))));
        let gone = [file("a", Source::Path { path: "/nowhere".into(), size: 1 })];
        assert!(matches!(make(&image, &gone), Err(EspError::Source(_))));
    }
}

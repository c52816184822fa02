//! Sizes of a disk's logical blocks. Partition table and FAT count in them, so an image fits disks of one size only.

use std::{
    fmt,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// Bytes of a logical block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SectorSize {
    /// 512 bytes: nearly all disks, also those that have 4096 inside ("512e").
    #[default]
    B512,
    /// 4096 bytes: "4Kn" disks.
    B4096,
}

impl SectorSize {
    /// All sizes that disks have.
    pub const ALL: [Self; 2] = [Self::B512, Self::B4096];

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// The size of this many bytes, if disks have it.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bytes() == bytes)
    }

    /// What a disk image was made for: its partition table's header stands in the second block, and in the last (UEFI
    /// specification 2.10, section 5.3.2). None if it has no table.
    pub fn of_image(mut image: &File) -> io::Result<Option<Self>> {
        let end = image.seek(SeekFrom::End(0))?;
        for place in [|size: Self, _: u64| size.bytes(), |size: Self, end: u64| end.saturating_sub(size.bytes())] {
            for size in Self::ALL {
                let mut signature = [0; 8];
                match image.read_exact_at(&mut signature, place(size, end)) {
                    Ok(()) if &signature == b"EFI PART" => return Ok(Some(size)),
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }
}

impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_has_no_sector_size() {
        let file = tempfile::tempfile().unwrap();
        for length in [0, 512, 519, 4096, 8192] {
            file.set_len(length).unwrap();
            assert_eq!(SectorSize::of_image(&file).unwrap(), None, "{length} zeroes");
        }
        file.write_all_at(b"EFI PART", 4096).unwrap();
        assert_eq!(SectorSize::of_image(&file).unwrap(), Some(SectorSize::B4096));
        // Where the first table is damaged, the second one tells.
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"efi part", 4096).unwrap();
        file.write_all_at(b"EFI PART", (1 << 20) - 512).unwrap();
        assert_eq!(SectorSize::of_image(&file).unwrap(), Some(SectorSize::B512));
    }
}

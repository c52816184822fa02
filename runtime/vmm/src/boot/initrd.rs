//! The initrd: files one behind the other, each padded to 4 bytes, as the kernel unpacks concatenated archives
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{fs::File, ops::Range, path::PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestRam;

const ALIGN: u64 = 4;
const PAGE: u64 = 4096;

/// Loads `files` as high as possible into `room` and returns where they are; none if there are no files.
pub fn load(ram: &GuestRam, files: &[PathBuf], room: Range<u64>) -> Result<Option<Range<u64>>, BootError> {
    let mut parts = Vec::with_capacity(files.len());
    let mut needed = 0_u64;
    for path in files {
        let failed = |source| BootError::File { path: path.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        parts.push((path, file, size));
        needed = size
            .checked_next_multiple_of(ALIGN)
            .and_then(|size| needed.checked_add(size))
            .ok_or(BootError::NoRoom { needed: u64::MAX, end: room.end })?;
    }
    if needed == 0 {
        return Ok(None);
    }
    let start = room.end.checked_sub(needed).map(|start| start - start % PAGE).filter(|start| *start >= room.start);
    let start = start.ok_or(BootError::NoRoom { needed, end: room.end })?;
    let mut at = start;
    for (path, mut file, size) in parts {
        // Guest memory is zero so far, so the padding is there already.
        ram.read_exact_volatile_from(GuestAddress(at), &mut file, size as usize)
            .map_err(|error| BootError::File { path: path.clone(), source: std::io::Error::other(error) })?;
        at += size.next_multiple_of(ALIGN);
    }
    Ok(Some(start..at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    #[test]
    fn files_follow_one_another_padded_to_four_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = ["12345", "6", ""]
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let path = folder.path().join(index.to_string());
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let at = load(&ram, &files, 0..1 << 20).unwrap().unwrap();
        let mut bytes = vec![0; (at.end - at.start) as usize];
        ram.read_slice(&mut bytes, GuestAddress(at.start)).unwrap();
        assert_eq!(bytes, b"12345\0\0\x006\0\0\0");
        assert_eq!(at.start, (1 << 20) - 4096);
        let no_room = load(&ram, &files, (1 << 20) - 8..1 << 20);
        assert!(matches!(no_room, Err(BootError::NoRoom { needed: 12, .. })));
        assert_eq!(load(&ram, &[], 0..0).unwrap(), None);
    }
}

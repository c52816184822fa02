//! Disks without space: what any writer may meet, wherever it stands in the chain of an error's causes.

use std::{
    error::Error,
    io::{self, ErrorKind},
};

/// What Linux says of a full file system and of a user's full share of one. Some errors are known by their words alone:
/// what a program printed, or what a library says that keeps no cause.
const SAID: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// Whether an error comes of a disk without space.
pub fn is_behind(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) || {
            let text = error.to_string();
            SAID.iter().any(|said| text.contains(said))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::Ext4Error;

    #[test]
    fn a_full_disk_is_known_wherever_it_stands_and_no_other_error_is() {
        for number in [28, 122] {
            let full = || io::Error::from_raw_os_error(number);
            assert!(is_behind(&full()) && is_behind(&Ext4Error::from(mkext4::Error::Io(full()))), "{number}");
            assert!(is_behind(&io::Error::other(format!("tar said: {}", full()))), "{number}");
        }
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            assert!(is_behind(&Ext4Error::from(mkext4::Error::Io(kind.into()))), "{kind}");
        }
        assert!(!is_behind(&io::Error::from_raw_os_error(5)) && !is_behind(&Ext4Error::SuperBlock(1024)));
    }
}

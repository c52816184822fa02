//! Copies a folder of the image, with owners, modes, times, extended attributes (capabilities and ACLs are some), links
//! and special files. Nothing else runs yet, so what is looked at stays as it is.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr, mknodat,
    utimensat,
};

/// Most bytes of a file's attributes' names together, and of one value (Linux, limits.h: XATTR_LIST_MAX,
/// XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;

/// What could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub(crate) struct SeedError {
    path: PathBuf,
    source: io::Error,
}

/// Makes `to` a copy of the folder `from`, and returns how many things are in it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<u64, SeedError> {
    let mut copied = Copied::default();
    copied.entry(from, to)?;
    Ok(copied.count - 1)
}

#[derive(Default)]
struct Copied {
    count: u64,
    /// Where files with more than one name were copied to, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Copied {
    fn entry(&mut self, from: &Path, to: &Path) -> Result<(), SeedError> {
        let failed = |source| SeedError { path: from.to_owned(), source };
        let metadata = fs::symlink_metadata(from).map_err(failed)?;
        self.count += 1;
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&key) {
                return fs::hard_link(first, to).map_err(failed);
            }
            self.links.insert(key, to.to_owned());
        }
        content(from, to, &metadata).map_err(failed)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(from).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                self.entry(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        // A folder's times last: what is put into it changes them.
        attributes(from, to, &metadata).map_err(failed)
    }
}

fn content(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let node = |kind, device| Ok(mknodat(CWD, to, kind, Mode::from_raw_mode(0o600), device)?);
    if kind.is_dir() {
        fs::create_dir(to)
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)
    } else if kind.is_file() {
        let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
        let mut source = File::options().read(true).custom_flags(nofollow).open(from)?;
        let mut target = File::options().write(true).create_new(true).open(to)?;
        io::copy(&mut source, &mut target).map(drop)
    } else if kind.is_fifo() {
        node(FileType::Fifo, 0)
    } else if kind.is_socket() {
        node(FileType::Socket, 0)
    } else if kind.is_char_device() {
        node(FileType::CharacterDevice, metadata.rdev())
    } else {
        node(FileType::BlockDevice, metadata.rdev())
    }
}

/// The owner before mode and attributes: changing it clears set-user-id and capabilities.
fn attributes(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        fs::set_permissions(to, metadata.permissions())?;
    }
    let mut names = vec![0; XATTR_MAX];
    let length = llistxattr(from, names.as_mut_slice())?;
    let mut value = vec![0; if length == 0 { 0 } else { XATTR_MAX }];
    for name in names.get(..length).unwrap_or_default().split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name)?;
        let length = lgetxattr(from, &name, value.as_mut_slice())?;
        lsetxattr(to, &name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What `find`, `getcap` and `sha256sum` say of a tree, without inodes and times of change.
    fn listing(root: &Path) -> String {
        let script = r#"cd "$1" && find . -printf '%p %y %m %U:%G %n %l %T@ ' \( -type f -printf '%s' -o -true \) -printf '\n' | LC_ALL=C sort; \
                        getcap -r . | LC_ALL=C sort; find . -type f -exec sha256sum {} + | LC_ALL=C sort"#;
        let output = Command::new("sh").args(["-c", script, "sh"]).arg(root).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Needs root, as all of CI has.
    #[test]
    fn a_copy_has_the_owners_modes_times_attributes_and_links_of_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let script = r#"set -e; mkdir -p "$1/sub/deep" && cd "$1"; echo zone > sub/zone; chown 101:102 sub/zone; chmod 2640 sub/zone
            chmod 1775 sub; chown 0:102 sub . ; ln sub/zone sub/deep/second; ln -s ../nowhere sub/link; chown -h 5:6 sub/link
            mkfifo sub/pipe; mknod sub/null c 1 3; setcap cap_net_bind_service=ep sub/zone; : > empty
            touch -d '2001-02-03 04:05:06.789' sub/zone; touch -h -d '2002-01-01' sub/link; touch -d '2003-01-01' sub ."#;
        assert!(Command::new("sh").args(["-c", script, "sh"]).arg(&from).status().unwrap().success());
        assert_eq!(copy(&from, &to).unwrap(), 8);
        let copied = listing(&to);
        assert_eq!(copied, listing(&from));
        assert!(copied.contains("cap_net_bind_service"), "{copied}");
        assert!(copied.contains("sub/zone f 2640 101:102 2 "), "{copied}");
        assert!(fs::metadata(to.join("sub/null")).unwrap().file_type().is_char_device());
    }

    #[test]
    fn what_can_not_be_copied_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("from/sub")).unwrap();
        fs::create_dir_all(folder.path().join("to")).unwrap();
        let error = copy(&folder.path().join("from"), &folder.path().join("to")).unwrap_err();
        assert!(error.to_string().contains("/from: File exists"), "{error}");
    }
}

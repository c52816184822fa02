//! Packages unpacked: each .deb once more with its parts plain (deb(5)), since to decompress them is a quarter of what
//! a build of many packages does. One member more than other packages have, at the end, is a checksum of the .deb's
//! hash and of all before it: it finds what a disk lets rot, and a package under another's name.

use std::{
    fs::{File, Permissions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rackstick::{
    layers::{deb, sum},
    locked,
};
use rackstick_image::digest::Sha256;

use super::{Store, StoreError, Want};
use crate::{parallel::each_by, progress::Progress};

/// Where they are, below the store's folder, each under the hash of its .deb. Whatever unpacks in another way has
/// another number.
pub(super) const FOLDER: &str = "store/unpacked-1";
/// What an archive begins with (ar(5)).
const MAGIC: &[u8] = b"!<arch>\n";
/// The header of a member (ar(5)).
const HEADER_SIZE: u64 = 60;
/// Name of the member with the checksum: eight hexadecimal digits of CRC-32C.
const SUM: &str = "_crc32c";
const SUM_SIZE: u64 = HEADER_SIZE + 8;
/// Bytes copied at once.
const BUFFER_SIZE: usize = 256 << 10;

/// Why a package is not unpacked.
enum Failure {
    /// It is damaged.
    Deb(deb::Error),
    /// What it holds can't be written.
    Write(io::Error),
}

impl From<deb::Error> for Failure {
    fn from(error: deb::Error) -> Self {
        Self::Deb(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl Store {
    /// Where a package of this hash is, once it was unpacked.
    pub fn unpacked(&self, hash: Sha256) -> PathBuf {
        self.all_unpacked().join(hash.to_string())
    }

    pub(super) fn all_unpacked(&self) -> PathBuf {
        self.folder().join(FOLDER)
    }

    /// Sees to it that all these packages, which the store has, are there unpacked and whole; each is then at
    /// [`Store::unpacked`]. Unpacks `jobs` of them at once.
    pub fn unpack(&self, packages: &[Want], jobs: usize, progress: &Progress) -> Result<(), StoreError> {
        let whole = each_by(jobs, packages, |package| {
            let path = self.unpacked(package.sha256);
            let whole = is_whole(&path, package.sha256).and_then(|whole| locked::touch_if_there(&path).map(|()| whole));
            whole.map_err(|source| StoreError::Io { path, source })
        });
        let mut missing = Vec::new();
        for (package, whole) in packages.iter().zip(whole) {
            if !whole? {
                missing.push(package);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        // A large one that began last would be alone at the end.
        missing.sort_by_key(|package| std::cmp::Reverse(package.size));
        let what = match missing.as_slice() {
            [only] => only.name.clone(),
            several => format!("{} packages", several.len()),
        };
        let scratch = self.scratch()?;
        let total = missing.iter().map(|package| package.size).sum();
        let job = progress.bytes("unpacking", &what, total);
        // How large they become no index tells for sure: at least as large as they are.
        let left = AtomicU64::new(total);
        let unpacked = each_by(jobs, &missing, |package| {
            self.unpack_one(package, scratch.path()).map_err(|failure| match failure {
                Failure::Deb(source) => StoreError::Package { name: package.name.clone(), source },
                Failure::Write(source) => {
                    self.io_error(&self.unpacked(package.sha256), source, left.load(Ordering::Relaxed))
                }
            })?;
            left.fetch_sub(package.size, Ordering::Relaxed);
            job.advance(package.size);
            Ok(())
        });
        unpacked.into_iter().collect::<Result<(), StoreError>>()?;
        job.done(&what);
        Ok(())
    }

    fn unpack_one(&self, package: &Want, scratch: &Path) -> Result<(), Failure> {
        let deb = File::open(self.path(package.sha256)).map_err(deb::Error::Read)?;
        let mut out = tempfile::Builder::new().permissions(Permissions::from_mode(0o644)).tempfile_in(scratch)?;
        write(&deb, package.sha256, out.as_file_mut())?;
        out.persist(self.unpacked(package.sha256)).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Writes a package once more to `out`, which is empty.
fn write(deb: &File, hash: Sha256, out: &mut File) -> Result<(), Failure> {
    out.write_all(MAGIC)?;
    let version = b"2.0\n";
    out.write_all(&header("debian-binary", version.len() as u64))?;
    out.write_all(version)?;
    let mut buffer = vec![0; BUFFER_SIZE];
    deb::parts::<Failure>(deb, |name, content| {
        let start = out.stream_position()?;
        out.write_all(&header(name, 0))?;
        let mut size = 0;
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    size += read as u64;
                    out.write_all(&buffer[..read])?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(deb::Error::Read(error).into()),
            }
        }
        if size % 2 == 1 {
            out.write_all(b"\n")?;
        }
        Ok(out.write_all_at(&header(name, size), start)?)
    })?;
    out.seek(SeekFrom::Start(0))?;
    let sum = sum::crc(hash.0.chain(&*out))?;
    Ok(out.write_all(&last(sum))?)
}

fn header(name: &str, size: u64) -> Vec<u8> {
    format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 100_644).into_bytes()
}

/// The last member.
fn last(sum: u32) -> Vec<u8> {
    [header(SUM, 8), format!("{sum:08x}").into_bytes()].concat()
}

/// Whether an unpacked package is there and what it was when it was written.
pub(super) fn is_whole(path: &Path, hash: Sha256) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let Some(size) = file.metadata()?.len().checked_sub(SUM_SIZE) else { return Ok(false) };
    let mut found = [0; SUM_SIZE as usize];
    file.read_exact_at(&mut found, size)?;
    Ok(found == *last(sum::crc(hash.0.chain((&file).take(size)))?))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;
    use crate::store::tests::small_disk;

    fn deb(folder: &Path, options: &[&str]) -> Vec<u8> {
        let tree = folder.join("tree");
        let (control, content) = (tree.join("DEBIAN"), tree.join("usr/share/x"));
        for folder in [&control, &content] {
            fs::create_dir_all(folder).unwrap();
        }
        let fields = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n";
        fs::write(control.join("control"), fields).unwrap();
        fs::write(content.join("large"), vec![7; 3_000_001]).unwrap();
        let path = folder.join("x.deb");
        let made = Command::new("dpkg-deb").args(options).arg("-b").args([&tree, &path]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::read(path).unwrap()
    }

    fn put(store: &Store, bytes: &[u8]) -> Want {
        let sha256 = Sha256::of(bytes);
        fs::write(store.path(sha256), bytes).unwrap();
        let size = bytes.len() as u64;
        Want { name: "x 1".into(), archive: "debian".into(), path: "pool/x.deb".into(), size, sha256 }
    }

    fn leftovers(store: &Store) -> usize {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(store.folder()).unwrap().map(name).filter(|name| name.starts_with("build-")).count()
    }

    fn listed(deb: &Path) -> String {
        let listed = Command::new("dpkg-deb").arg("-c").arg(deb).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let info = Command::new("dpkg-deb").arg("-f").arg(deb).output().unwrap();
        String::from_utf8([info.stdout, listed.stdout].concat()).unwrap()
    }

    #[test]
    fn an_unpacked_package_is_one_that_dpkg_reads_and_is_made_anew_once_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("cache")).unwrap();
        let progress = Progress::quiet();
        let another = put(&store, &deb(folder.path(), &["-Zxz", "-z1"]));
        store.unpack(std::slice::from_ref(&another), 1, &progress).unwrap();
        for options in [["-Zxz", "-z6"], ["-Zgzip", "-z6"], ["-Zzstd", "-z3"], ["-Znone", "-z0"]] {
            let want = put(&store, &deb(folder.path(), &options));
            let (packed, unpacked) = (store.path(want.sha256), store.unpacked(want.sha256));
            store.unpack(std::slice::from_ref(&want), 2, &progress).unwrap();
            assert_eq!(listed(&unpacked), listed(&packed));
            let good = fs::read(&unpacked).unwrap();
            assert!(good.len() > 3_000_000);

            let mut spoiled = [good.clone(), good[..good.len() - 1].to_vec(), good[..9].to_vec(), Vec::new()];
            spoiled[0][1_000_000] ^= 1;
            let of_another = fs::read(store.unpacked(another.sha256)).unwrap();
            for bad in spoiled.into_iter().chain([of_another]) {
                fs::write(&unpacked, bad).unwrap();
                store.unpack(std::slice::from_ref(&want), 2, &progress).unwrap();
                assert!(fs::read(&unpacked).unwrap() == good, "made anew");
            }
            let made = || fs::metadata(&unpacked).unwrap().created().unwrap();
            let before = made();
            store.unpack(&[want], 2, &progress).unwrap();
            assert_eq!(made(), before, "made once");
        }
        assert_eq!(leftovers(&store), 0);
    }

    /// The same package with another data part.
    fn with_data(deb: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let start = deb.windows(9).position(|bytes| bytes == b"data.tar." || bytes == b"data.tar ").unwrap();
        let (head, data) = deb[start..].split_at(HEADER_SIZE as usize);
        let size: usize = str::from_utf8(&head[48..58]).unwrap().trim().parse().unwrap();
        let mut data = data[..size].to_vec();
        change(&mut data);
        let name = str::from_utf8(&head[..16]).unwrap().trim();
        let new = header(name, data.len() as u64);
        if data.len() % 2 == 1 {
            data.push(b'\n');
        }
        [&deb[..start], &new, &data].concat()
    }

    #[test]
    fn what_stands_behind_the_end_of_a_part_is_judged_as_by_dpkg_deb() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("cache")).unwrap();
        let plain = |deb: &Path| {
            let read = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).output().unwrap();
            read.status.success().then_some(read.stdout)
        };
        let junk = |begin: &[u8], size| [begin, &vec![b'q'; size]].concat();
        let mut judged = Vec::new();
        for packing in ["-Znone", "-Zxz", "-Zgzip", "-Zzstd"] {
            let whole = deb(folder.path(), &[packing]);
            let mut variants: Vec<Vec<u8>> = [
                junk(b"", 1),
                junk(b"", 6000),
                vec![0; 4],
                vec![0; 512],
                junk(b"", 300_000),
                junk(b"\x1f", 0),
                junk(b"\x1f\x8b", 0),
                junk(b"\x1f\x8b", 6000),
                junk(b"\xfd7zXZ\0", 6000),
                junk(&[0x28, 0xb5, 0x2f, 0xfd], 6000),
            ]
            .into_iter()
            .map(|behind| with_data(&whole, |data| data.extend(behind)))
            .collect();
            variants.push(with_data(&whole, |data| data.extend(data.clone())));
            variants.push(with_data(&whole, |data| data.extend(data.clone().split_last().unwrap().1)));
            variants.extend([1, 5, 40].map(|cut| with_data(&whole, |data| data.truncate(data.len() - cut))));
            for (number, deb) in variants.iter().enumerate() {
                let want = put(&store, deb);
                let theirs = plain(&store.path(want.sha256));
                let ours = store.unpack(std::slice::from_ref(&want), 1, &Progress::quiet());
                assert_eq!(ours.is_ok(), theirs.is_some(), "{packing} {number}: {ours:?}");
                assert!(ours.is_err() || plain(&store.unpacked(want.sha256)) == theirs, "{packing} {number}");
                judged.push(theirs.is_some());
            }
        }
        assert!(judged.contains(&true) && judged.contains(&false));
    }

    #[test]
    fn a_disk_that_is_too_small_for_what_is_unpacked_is_told_and_nothing_half_made_stays() {
        let resize = |disk: &Path, options: &str| {
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(disk).status();
            assert!(mounted.unwrap().success());
        };
        let name = "a_disk_that_is_too_small_for_what_is_unpacked_is_told_and_nothing_half_made_stays";
        let Some(disk) = small_disk(&format!("store::unpacked::tests::{name}"), "size=2m") else { return };
        let store = Store::at(disk.join("cache")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let want = put(&store, &deb(folder.path(), &["-Zxz"]));
        match store.unpack(std::slice::from_ref(&want), 1, &Progress::quiet()).unwrap_err() {
            StoreError::NoSpace { needed, free, .. } => {
                assert!(needed == want.size && free > 1 << 20, "{needed} {free}")
            }
            other => panic!("{other:?}"),
        }
        assert!(!store.unpacked(want.sha256).exists());
        assert_eq!(leftovers(&store), 0);
        resize(&disk, "remount,size=16m");
        store.unpack(std::slice::from_ref(&want), 1, &Progress::quiet()).unwrap();
        assert!(is_whole(&store.unpacked(want.sha256), want.sha256).unwrap());
    }

    #[test]
    fn a_damaged_package_is_named_by_what_there_still_is_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("cache")).unwrap();
        let want = put(&store, &deb(folder.path(), &["-Zxz"]));
        store.unpack(std::slice::from_ref(&want), 1, &Progress::quiet()).unwrap();
        // Nothing of it can be read any more, and it is there unpacked.
        fs::write(store.path(want.sha256), "gone").unwrap();
        let (count, wrong) = store.verify();
        let [Ok(damaged)] = &wrong[..] else { panic!("{wrong:?}") };
        assert_eq!((count, damaged.path.clone()), (1, store.path(want.sha256)));
        assert_eq!(damaged.package, Some(("x".to_owned(), "1".to_owned())));
    }

    #[test]
    fn a_package_that_is_none_is_named_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("cache")).unwrap();
        let whole = deb(folder.path(), &["-Zxz"]);
        for bad in [&whole[..whole.len() / 2], b"!<arch>\n", b""] {
            let want = put(&store, bad);
            let error = store.unpack(std::slice::from_ref(&want), 1, &Progress::quiet()).unwrap_err();
            assert!(error.to_string().starts_with("x 1 "), "{error}");
            assert!(!store.unpacked(want.sha256).exists());
        }
        assert_eq!(leftovers(&store), 0);
    }
}

//! The disk of a guest whose image is a whole disk: the file `volumes/<guest>/disk.raw` on the data partition. At the
//! guest's first start it is copied from the generation's packed disk, beside its place, synced and renamed; from then
//! on it is the guest's own, grown where the recipe says so, and never replaced: which base it was copied from is noted
//! on it, and told where the generation has another one now.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::Path,
    sync::{Mutex, PoisonError},
};

use rackstick_image::{
    digest::VerityDigest,
    manifest,
    packed::{self, PackedError},
};
use rustix::{
    fs::{XattrFlags, fgetxattr, fsetxattr, fstatvfs},
    io::Errno,
};

use super::volumes::{self, Error, MIB, Ready, failed};
use crate::daemon::layers;

/// Name of the file. No volume can have it: names of volumes have no dots.
const FILE: &str = "disk.raw";
const PARTIAL: &str = ".disk.raw.new";
/// The disk's serial number in the guest.
const SERIAL: &str = "disk";
/// The extended attribute with the digest of what it was copied from, as its 32 bytes.
const BASE: &str = "user.rackstick.base";

/// Why a disk could not be made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The packed disk.
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// A file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No room.
    #[error("it has {needs_mib} MiB of data, and {free_mib} MiB are free")]
    Space {
        /// What is on it, in MiB.
        needs_mib: u64,
        /// What is free, in MiB.
        free_mib: u64,
    },
}

/// Makes or grows the guest's disk in the folder `own` of its volumes, and gives it to `uid`. `base`: where the data
/// partition is.
pub(super) fn prepare(
    base: &Path,
    own: &Path,
    disk: &manifest::Disk,
    recipe_mib: Option<u32>,
    uid: u32,
) -> Result<Ready, Error> {
    let path = own.join(FILE);
    let wanted = recipe_mib.map_or(disk.size, |mib| u64::from(mib) * MIB);
    let ready = |differs| Ready { name: SERIAL.into(), path: path.clone(), differs };
    let file = match volumes::open(&path, true) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let partial = own.join(PARTIAL);
            let made = make(&layers::path_in(base, &disk.blob.digest), &partial, disk, wanted, uid)
                .and_then(|()| Ok(fs::rename(&partial, &path)?));
            if let Err(source) = made {
                // It may not be there; if it stays, the next try begins with it.
                let _ = fs::remove_file(&partial);
                return Err(Error::Disk { label: disk.blob.label.clone(), source });
            }
            log::info!("{} was made from {}, {} MiB", path.display(), disk.blob.label, wanted / MIB);
            return Ok(ready(None));
        }
        Err(error) => return Err(volumes::unopened(path, error)),
    };
    let length = volumes::length(&file, &path, packed::is_size)?;
    if length < wanted {
        file.set_len(wanted).map_err(failed("grow", &path))?;
        log::info!("{} was grown from {} to {} MiB", path.display(), length / MIB, wanted / MIB);
    }
    volumes::give(&file, uid).map_err(failed("give to its guest", &path))?;
    file.sync_all().map_err(failed("sync", &path))?;
    let smaller = recipe_mib.filter(|_| length > wanted).map(|mib| volumes::too_large(&path, length, mib));
    let older = older(&file, &disk.blob).map_err(failed("read the origin of", &path))?.map(|was| {
        format!(
            "{} was made from another disk ({was}) than {} of this generation: the guest's own is kept as it is",
            path.display(),
            disk.blob.label
        )
    });
    let differs: Vec<String> = [smaller, older].into_iter().flatten().collect();
    Ok(ready((!differs.is_empty()).then(|| differs.join("; "))))
}

impl MakeError {
    /// Whether what is copied is at fault: another try would come to the same place.
    pub fn lies_in_the_base(&self) -> bool {
        matches!(self, Self::Packed(PackedError::Read { .. } | PackedError::Damaged(_) | PackedError::Size(_)))
    }
}

/// Copies the disk. What is read is checked by fs-verity as it is read. One at a time, so that of two guests for which
/// there is room only once, one gets it.
fn make(from: &Path, partial: &Path, disk: &manifest::Disk, wanted: u64, uid: u32) -> Result<(), MakeError> {
    static COPYING: Mutex<()> = Mutex::new(());
    let _alone = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    let file = volumes::begin(partial)?;
    let space = fstatvfs(&file).map_err(io::Error::from)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // Looked at first: a try that fills the disk would be repeated, and take the room from all other guests meanwhile.
    if disk.blob.size > free {
        return Err(MakeError::Space { needs_mib: disk.blob.size.div_ceil(MIB), free_mib: free / MIB });
    }
    packed::unpack(&File::open(from)?, &file)?;
    if file.metadata()?.len() < wanted {
        file.set_len(wanted)?;
    }
    fsetxattr(&file, BASE, &disk.blob.digest.0, XattrFlags::empty()).map_err(io::Error::from)?;
    volumes::give(&file, uid)?;
    Ok(file.sync_all()?)
}

/// The beginning of the digest of what the disk was made from, if that is not this blob.
fn older(file: &File, blob: &manifest::Blob) -> io::Result<Option<String>> {
    let mut digest = [0; 32];
    match fgetxattr(file, BASE, &mut digest[..]) {
        Ok(length) if length == digest.len() => {
            Ok((digest != blob.digest.0).then(|| VerityDigest(digest).to_string()[..12].to_owned()))
        }
        // Put there by somebody else than this rack.
        Ok(_) | Err(Errno::NODATA | Errno::RANGE) => Ok(Some("of unknown origin".into())),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use rackstick_image::{manifest::Blob, packed::Writer, verity};

    use super::{volumes::FILE_MODE, *};
    use crate::daemon::network::firewall::tests as sample;

    /// A data partition with a packed disk of 64 MiB in it that has this text in its middle.
    fn blob(base: &Path, text: &[u8]) -> manifest::Disk {
        let mut writer = Writer::new(Vec::new(), 64 * MIB).unwrap();
        writer.skip(32 * MIB).unwrap();
        writer.write(text).unwrap();
        let bytes = writer.finish().unwrap();
        let digest = verity::digest(&bytes[..]).unwrap();
        fs::create_dir_all(base.join("layers")).unwrap();
        fs::write(layers::path_in(base, &digest), &bytes).unwrap();
        manifest::Disk { blob: Blob { digest, size: bytes.len() as u64, label: "web.qcow2".into() }, size: 64 * MIB }
    }

    fn guest(disk_mib: Option<u32>) -> manifest::Guest {
        manifest::Guest { disk_mib, ..sample::manifest().guests.remove(0) }
    }

    fn text(path: &Path) -> Vec<u8> {
        let mut text = vec![0; 5];
        File::open(path).unwrap().read_exact_at(&mut text, 32 * MIB).unwrap();
        text
    }

    #[test]
    fn a_disk_is_copied_once_without_its_holes_then_kept_and_grown_but_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        let (first, second) = (blob(base, b"first"), blob(base, b"other"));
        let prepare = |disk, mib| volumes::prepare(base, &guest(mib), Some(disk), 2007).unwrap().remove(0);
        let ready = prepare(&first, None);
        assert_eq!((&*ready.name, &ready.differs), ("disk", &None));
        let path = ready.path;
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.uid(), metadata.mode() & 0o7777), (64 * MIB, 2007, FILE_MODE));
        assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
        assert_eq!(text(&path), b"first");

        // What the guest writes stays, whatever the generation brings.
        File::options().write(true).open(&path).unwrap().write_all_at(b"guest", 32 * MIB).unwrap();
        assert_eq!(prepare(&first, None).differs, None);
        let said = prepare(&second, None).differs.unwrap();
        let was = first.blob.digest.to_string();
        assert!(said.contains(&was[..12]) && said.contains("kept as it is"), "{said}");
        assert_eq!(prepare(&first, Some(128)).differs, None);
        assert_eq!(fs::metadata(&path).unwrap().len(), 128 * MIB);
        // The disk of the image has 64 MiB: without a size in the recipe nothing is smaller than asked for.
        assert_eq!(prepare(&first, None).differs, None);
        let said = prepare(&first, Some(96)).differs.unwrap();
        assert!(said.contains("has 128 MiB, the recipe says 96"), "{said}");
        assert_eq!((fs::metadata(&path).unwrap().len(), text(&path)), (128 * MIB, b"guest".to_vec()));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_cut_left_of_a_copy_is_made_anew_and_a_failed_one_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        let disk = blob(base, b"first");
        let own = base.join("volumes").join(guest(None).name);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join(PARTIAL), vec![7; 100_000]).unwrap();
        // The base is damaged: its last block is another.
        let packed = layers::path_in(base, &disk.blob.digest);
        let good = fs::read(&packed).unwrap();
        fs::write(&packed, &good[..good.len() - 1]).unwrap();
        let error = volumes::prepare(base, &guest(None), Some(&disk), 2007).unwrap_err().to_string();
        assert!(error.contains("can't be made from web.qcow2"), "{error}");
        assert_eq!(fs::read_dir(&own).unwrap().count(), 0);

        fs::write(&packed, &good).unwrap();
        fs::write(own.join(PARTIAL), vec![7; 100_000]).unwrap();
        let ready = volumes::prepare(base, &guest(Some(96)), Some(&disk), 2007).unwrap().remove(0);
        assert_eq!((text(&ready.path), fs::metadata(&ready.path).unwrap().len()), (b"first".to_vec(), 96 * MIB));
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_disk_is_never_touched_and_one_of_unknown_origin_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        let disk = blob(base, b"first");
        let own = base.join("volumes").join(guest(None).name);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join(FILE), "a text").unwrap();
        let error = volumes::prepare(base, &guest(None), Some(&disk), 2007).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert_eq!(fs::read_to_string(own.join(FILE)).unwrap(), "a text");
        File::create(own.join(FILE)).unwrap().set_len(64 * MIB).unwrap();
        let ready = volumes::prepare(base, &guest(None), Some(&disk), 2007).unwrap().remove(0);
        assert!(ready.differs.unwrap().contains("of unknown origin"));
        assert_eq!(text(&ready.path), [0; 5]);
    }
}

//! Secrets on their way to a rack. Every ESP has a *slot* for them, a file of fixed size that the builder makes empty.
//! Who flashes or runs an image overwrites its bytes where they lie, so that no file system changes; the rack takes the
//! values from there to its data partition, and empties it.
//!
//! A filled slot is a head ([`MAGIC`], the length of what follows as 8 bytes, lowest first, and the SHA-256 of that)
//! padded to [`HEAD_SIZE`], then a newc archive with the values as files `<guest>/<name>`, then zeroes. Whoever empties
//! a slot does so from behind, the head last: one whose head is zero holds nothing.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Cursor},
    os::unix::fs::FileExt,
};

use sha2::{Digest, Sha256};

use crate::{
    cpio,
    esp::read::Fat,
    recipe::is_name,
    view::{self, View, ensure},
};

/// The slot's path on the ESP.
pub const SLOT: &str = "rackstick/secrets";
/// Where a rack keeps them on its data partition, as files `<guest>/<name>`.
pub const KEPT: &str = "state/secrets";
/// The slot's size: all secrets of a rack, a thousand keys and certificates.
pub const SLOT_SIZE: u64 = 4 << 20;
/// Largest value of one secret: far above any key, and a guest's memory holds it twice while the guest starts.
pub const VALUE_MAX: usize = 64 << 10;
/// Most secrets of one image: with their largest values they still fit the smallest guest.
pub const SECRETS_MAX: usize = 32;
/// What stands before the values: a part of its own, so that it can be emptied after all else.
pub const HEAD_SIZE: usize = 4096;

const MAGIC: &[u8; 8] = b"rsecret1";
/// Nobody but root looks at an unpacked one.
const MODE: u32 = 0o400;

/// The value of a secret. It is never shown: its `Debug` says how long it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Vec<u8>);

impl Value {
    /// A value; none if it is empty or longer than [`VALUE_MAX`].
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (1..=VALUE_MAX).contains(&bytes.len()).then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

/// Values by guest and by the secret's name.
pub type Values = BTreeMap<(String, String), Value>;

/// Why a slot can't be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// They are too many.
    #[error("all secrets together need {needed} bytes, and a disk has room for {SLOT_SIZE}: make some of them shorter")]
    Full {
        /// What they need.
        needed: usize,
    },
    /// A name can't be one.
    #[error(transparent)]
    Archive(#[from] cpio::Error),
}

/// A slot, [`SLOT_SIZE`] bytes, with these values; without any it is empty.
///
/// # Errors
/// [`FillError`].
pub fn fill(values: &Values) -> Result<Vec<u8>, FillError> {
    let mut slot = vec![0; SLOT_SIZE as usize];
    if values.is_empty() {
        return Ok(slot);
    }
    let mut archive = cpio::Writer::new(Vec::new(), 0);
    for ((guest, name), value) in values {
        archive.bytes(&format!("{guest}/{name}"), MODE, value.bytes())?;
    }
    let archive = archive.finish()?;
    let needed = HEAD_SIZE + archive.len();
    let place = slot.get_mut(HEAD_SIZE..needed).ok_or(FillError::Full { needed })?;
    place.copy_from_slice(&archive);
    slot[..8].copy_from_slice(MAGIC);
    slot[8..16].copy_from_slice(&(archive.len() as u64).to_le_bytes());
    slot[16..48].copy_from_slice(&Sha256::digest(&archive));
    Ok(slot)
}

/// Why a slot can't be read. What is said of it holds nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something else stands there, or only a part of it: its writing or its emptying was cut short.
    #[error("what stands there is not whole")]
    Damaged,
    /// It is whole, and nobody of ours has written it.
    #[error("the entry at byte {0} is no secret of a guest")]
    Foreign(u64),
    /// The archive in it.
    #[error(transparent)]
    Archive(#[from] cpio::read::ReadError),
}

/// Whether a slot that begins with these bytes is empty.
pub fn is_empty(head: &[u8]) -> bool {
    head.iter().all(|&byte| byte == 0)
}

/// The values in a slot, none if it is empty. Anybody may have written it: names are checked, so that they can be names
/// of files.
///
/// # Errors
/// [`ReadError`].
pub fn read(slot: &[u8]) -> Result<Values, ReadError> {
    let mut values = Values::new();
    let (head, rest) = slot.split_at_checked(HEAD_SIZE).ok_or(ReadError::Damaged)?;
    if is_empty(head) {
        return Ok(values);
    }
    let field = |at: usize| head.get(at..).and_then(|rest| rest.first_chunk::<8>()).copied().unwrap_or_default();
    let length = usize::try_from(u64::from_le_bytes(field(8))).map_err(|_| ReadError::Damaged)?;
    let archive = rest.get(..length).filter(|_| field(0) == *MAGIC).ok_or(ReadError::Damaged)?;
    if head.get(16..48) != Some(&Sha256::digest(archive)[..]) {
        return Err(ReadError::Damaged);
    }
    for entry in cpio::read::Entries::new(Cursor::new(archive), 0..length as u64) {
        let entry = entry?;
        if !entry.is_file() {
            continue;
        }
        let foreign = || ReadError::Foreign(entry.content.start);
        // Both ends lie in the archive, which is in memory.
        let bytes = archive.get(entry.content.start as usize..entry.content.end as usize).ok_or_else(foreign)?;
        let (guest, name) = entry.path.split_once('/').ok_or_else(foreign)?;
        if !is_name(guest) || !is_name(name) {
            return Err(foreign());
        }
        let value = Value::new(bytes.to_vec()).ok_or_else(foreign)?;
        values.insert((guest.to_owned(), name.to_owned()), value);
    }
    Ok(values)
}

/// Where the slot of an ESP lies; none if the ESP has none, as those of other builders.
///
/// # Errors
/// [`view::ReadError`].
pub fn find<'a>(esp: &View<'a>) -> Result<Option<View<'a>>, view::ReadError> {
    let files = Fat::open(esp.clone())?.files()?;
    let slot = files.into_iter().find(|file| file.path.eq_ignore_ascii_case(SLOT)).map(|file| file.content);
    ensure(slot.as_ref().is_none_or(|slot| slot.length() == SLOT_SIZE), 0, "its slot for secrets has another size")?;
    Ok(slot)
}

/// Empties a slot of `disk`, from behind.
///
/// # Errors
/// What the system says.
pub fn empty(disk: &File, slot: &View<'_>) -> io::Result<()> {
    let zeroes = vec![0; slot.length() as usize];
    let head = (slot.length() as usize).min(HEAD_SIZE);
    write(disk, slot, &zeroes[head..], head as u64)?;
    write(disk, slot, &zeroes[..head], 0)
}

/// Writes what [`fill`] gave into a slot of `disk`, and syncs.
///
/// # Errors
/// What the system says.
pub fn put(disk: &File, slot: &View<'_>, filled: &[u8]) -> io::Result<()> {
    write(disk, slot, filled, 0)
}

fn write(disk: &File, slot: &View<'_>, mut bytes: &[u8], at: u64) -> io::Result<()> {
    let places = slot.part(at, bytes.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
    for (place, length) in places.places() {
        // The lengths of all places add up to that of the bytes.
        let (now, later) = bytes.split_at(length as usize);
        disk.write_all_at(now, place)?;
        bytes = later;
    }
    disk.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        esp::{self, EspFile},
        sector::SectorSize,
        source::Source,
    };

    #[test]
    fn a_slot_is_found_on_its_esp_emptied_from_behind_and_nothing_else_changes() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(esp::SIZE).unwrap();
        let file = |path: &str, bytes| EspFile { path: path.into(), content: Source::Bytes(bytes).into() };
        let files = [file(SLOT, vec![0; SLOT_SIZE as usize]), file("EFI/x", vec![7; 9000])];
        esp::write(&disk, SectorSize::B512, 0, 7, &files).unwrap();
        // All that is written of it lies there.
        let all = |disk: &File| View::whole(disk).unwrap().part(0, 32 << 20).unwrap().bytes(32 << 20).unwrap();
        let before = all(&disk);

        let view = View::whole(&disk).unwrap();
        let slot = find(&view).unwrap().unwrap();
        put(&disk, &slot, &fill(&values(&[("mail", "dkim", b"a-secret")])).unwrap()).unwrap();
        assert_eq!(read(&slot.bytes(SLOT_SIZE).unwrap()).unwrap().len(), 1);
        // The head is there as long as anything else is.
        write(&disk, &slot, &vec![0; SLOT_SIZE as usize - HEAD_SIZE], HEAD_SIZE as u64).unwrap();
        assert!(matches!(read(&slot.bytes(SLOT_SIZE).unwrap()), Err(ReadError::Damaged)));
        put(&disk, &slot, &fill(&values(&[("mail", "dkim", b"a-secret")])).unwrap()).unwrap();
        empty(&disk, &slot).unwrap();
        assert!(all(&disk) == before);

        let other = tempfile::tempfile().unwrap();
        other.set_len(esp::SIZE).unwrap();
        esp::write(&other, SectorSize::B512, 0, 7, &[file("EFI/y", vec![7; 9000])]).unwrap();
        assert!(find(&View::whole(&other).unwrap()).unwrap().is_none());
    }

    fn values(of: &[(&str, &str, &[u8])]) -> Values {
        let entry = |(guest, name, value): &(&str, &str, &[u8])| {
            ((guest.to_string(), name.to_string()), Value::new(value.to_vec()).unwrap())
        };
        of.iter().map(entry).collect()
    }

    #[test]
    fn what_a_slot_is_filled_with_is_read_from_it_and_an_empty_one_is_all_zeroes() {
        let all = values(&[("mail", "dkim", b"key\n"), ("mail", "tls", &[0; VALUE_MAX]), ("web", "tls", b"\xff\0")]);
        let slot = fill(&all).unwrap();
        assert_eq!((slot.len() as u64, is_empty(&slot[..HEAD_SIZE])), (SLOT_SIZE, false));
        assert_eq!(read(&slot).unwrap(), all);
        let empty = fill(&Values::new()).unwrap();
        assert!(empty.len() as u64 == SLOT_SIZE && is_empty(&empty));
        assert_eq!(read(&empty).unwrap(), Values::new());
    }

    #[test]
    fn a_value_is_never_shown() {
        let all = values(&[("mail", "dkim", b"hunter2")]);
        assert_eq!(format!("{all:?}"), r#"{("mail", "dkim"): Value(7 bytes)}"#);
        assert_eq!([Value::new(Vec::new()), Value::new(vec![1; VALUE_MAX + 1])], [None, None]);
    }

    #[test]
    fn more_than_a_disk_has_room_for_is_refused_with_what_it_needs() {
        let all: Values = (0..64).flat_map(|n| values(&[("mail", &format!("k{n}"), &[7; VALUE_MAX])])).collect();
        let error = fill(&all).unwrap_err();
        assert!(matches!(error, FillError::Full { needed } if needed as u64 > SLOT_SIZE), "{error}");
    }

    #[test]
    fn a_slot_cut_short_at_any_block_gives_no_value_that_was_not_given() {
        let all = values(&[("mail", "dkim", &[b'x'; 9000]), ("web", "tls", b"short")]);
        let slot = fill(&all).unwrap();
        for block in 0..8 {
            // While it was written, and while it was emptied from behind.
            for range in [block * 512..SLOT_SIZE as usize, block * 4096..(block + 1) * 4096] {
                let mut cut = slot.clone();
                cut[range.clone()].fill(0);
                if cut == slot {
                    continue;
                }
                let found = read(&cut);
                assert!(
                    matches!(found, Err(ReadError::Damaged)) || found.as_ref().is_ok_and(Values::is_empty),
                    "{range:?}: {found:?}"
                );
            }
        }
        assert!(matches!(read(&slot[..100]), Err(ReadError::Damaged)));
    }

    #[test]
    fn no_name_in_a_slot_leads_elsewhere() {
        for path in ["mail", "mail/a/b", "Mail/dkim", "mail/.dkim", "mail/dk im"] {
            let mut archive = cpio::Writer::new(Vec::new(), 0);
            archive.bytes(path, MODE, b"value").unwrap();
            let found = read(&around(archive.finish().unwrap()));
            assert!(matches!(found, Err(ReadError::Foreign(_))), "{path}: {found:?}");
        }
        // What our own writer would not write.
        let mut archive = cpio::Writer::new(Vec::new(), 0);
        archive.bytes("mail/xx", MODE, b"value").unwrap();
        let mut bytes = archive.finish().unwrap();
        let at = bytes.windows(7).position(|window| window == b"mail/xx").unwrap();
        bytes[at..at + 7].copy_from_slice(b"../etc/");
        assert!(matches!(read(&around(bytes)), Err(ReadError::Foreign(_))));
    }

    /// A whole slot around any archive.
    fn around(archive: Vec<u8>) -> Vec<u8> {
        let mut slot = vec![0; HEAD_SIZE];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..16].copy_from_slice(&(archive.len() as u64).to_le_bytes());
        slot[16..48].copy_from_slice(&Sha256::digest(&archive));
        slot.extend(archive);
        slot
    }
}

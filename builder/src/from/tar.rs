//! Entries of a plain tar archive: ustar, pax (POSIX.1-2017, pax, "pax Interchange Format") and GNU's long names. Field
//! by field by the library; entry by entry by us, since it loses what this must keep: attributes with a line feed in
//! their values and sizes beyond 8 GiB.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom},
};

use rackstick_image::erofs::{Device, Mtime};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// Bytes of a path at most: what Linux takes (`PATH_MAX`).
const MAX_NAME_BYTES: u64 = 4096;
/// Bytes of one extended header at most: stops one that is read into memory without end. Attributes of one file have at
/// most 64 KiB each.
const MAX_PAX_BYTES: u64 = 1 << 20;
/// Entries of one archive at most, for the same reason.
const MAX_ENTRIES: u64 = 4_000_000;
/// The id that stands for none.
const NO_ID: u64 = u32::MAX as u64;

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The system.
    #[error("can't be read: {0}")]
    Read(#[from] io::Error),
    /// No tar archive, or none any more.
    #[error("is no tar archive or a damaged one: at byte {at}, {what}")]
    Damaged {
        /// Where the header is.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// GNU's sparse files.
    #[error("holds `{0}` as a sparse file: pack it again without --sparse")]
    Sparse(String),
    /// A type that is none of a file system's.
    #[error("holds `{path}` of type `{kind}`, which is no file, folder, link, device or pipe")]
    Kind {
        /// What.
        path: String,
        /// The type byte of its header.
        kind: char,
    },
    /// Too many.
    #[error("has more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file: its bytes in the archive.
    File {
        /// Where they begin.
        offset: u64,
        /// How many.
        size: u64,
    },
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A hard link.
    HardLink,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// One entry. Its paths are what stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path.
    pub path: Vec<u8>,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed.
    pub mtime: Mtime,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads entries.
pub struct Entries<R> {
    source: R,
    length: u64,
    /// Where the next header is.
    next: u64,
    /// What holds for all entries from here on.
    global: Pax,
    count: u64,
}

/// Records of extended headers, by keyword.
type Pax = BTreeMap<Vec<u8>, Vec<u8>>;

impl<R: Read + Seek> Entries<R> {
    /// Of the archive `source`.
    pub fn new(mut source: R) -> io::Result<Self> {
        let length = source.seek(SeekFrom::End(0))?;
        Ok(Self { source, length, next: 0, global: Pax::new(), count: 0 })
    }

    /// The next one; none at the archive's end.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let (mut pax, mut long_name, mut long_link) = (Pax::new(), None, None);
        loop {
            let at = self.next;
            let Some(header) = self.header()? else {
                let pending = !pax.is_empty() || long_name.is_some() || long_link.is_some();
                return if pending { Err(damaged(at, "it ends within an entry")) } else { Ok(None) };
            };
            let bad = |error: io::Error| damaged(at, &error.to_string());
            let mut size = header.entry_size().map_err(bad)?;
            match header.entry_type() {
                EntryType::GNULongName => long_name = Some(self.name(at, size)?),
                EntryType::GNULongLink => long_link = Some(self.name(at, size)?),
                EntryType::XHeader => pax = self.pax(at, size)?,
                EntryType::XGlobalHeader => {
                    let records = self.pax(at, size)?;
                    self.global.extend(records);
                    let bytes: usize = self.global.iter().map(|(name, value)| name.len() + value.len()).sum();
                    if bytes as u64 > MAX_PAX_BYTES {
                        return Err(damaged(at, "its global headers are larger than 1 MiB"));
                    }
                }
                // The name of the volume.
                kind if kind.as_byte() == b'V' => self.skip(at, size)?,
                kind => {
                    for (name, value) in &self.global {
                        pax.entry(name.clone()).or_insert_with(|| value.clone());
                    }
                    if let Some(long) = number(&pax, "size").map_err(|what| damaged(at, what))? {
                        size = long;
                    }
                    let path =
                        pax.remove(&b"path"[..]).or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = pax.remove(&b"linkpath"[..]).or(long_link);
                    let link =
                        link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
                    if path.contains(&0) || link.contains(&0) {
                        return Err(damaged(at, "a path has a NUL in it"));
                    }
                    if path.len().max(link.len()) as u64 > MAX_NAME_BYTES {
                        return Err(damaged(at, "a path is longer than 4096 bytes"));
                    }
                    if kind == EntryType::GNUSparse || pax.keys().any(|name| name.starts_with(b"GNU.sparse.")) {
                        return Err(TarError::Sparse(lossy(&path)));
                    }
                    let kind = self.kind(at, &header, &path, size)?;
                    return self.entry(at, &header, pax, path, link, kind).map(Some);
                }
            }
        }
    }

    /// The header at `next`; none at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.next;
        if at == self.length {
            return Ok(None);
        }
        if self.length - at < BLOCK {
            return Err(damaged(at, "it ends within a header"));
        }
        self.count += 1;
        if self.count > MAX_ENTRIES {
            return Err(TarError::TooMany);
        }
        let mut header = Header::new_old();
        self.source.seek(SeekFrom::Start(at))?;
        self.source.read_exact(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum over the header with blanks in place of the sum.
        let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = header.as_old().cksum.iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(damaged(at, "its checksum is wrong"));
        }
        self.next += BLOCK;
        Ok(Some(header))
    }

    /// What the entry is; its data are passed over.
    fn kind(&mut self, at: u64, header: &Header, path: &[u8], size: u64) -> Result<Kind, TarError> {
        let device = || -> io::Result<Device> {
            let number = |number: io::Result<Option<u32>>| Ok::<_, io::Error>(number?.unwrap_or_default());
            Ok(Device { major: number(header.device_major())?, minor: number(header.device_minor())? })
        };
        let bad = |error: io::Error| damaged(at, &error.to_string());
        let kind = match header.entry_type() {
            // As before there was a type for folders.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Folder,
            EntryType::Regular | EntryType::Continuous => Kind::File { offset: self.next, size },
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => Kind::CharDevice(device().map_err(bad)?),
            EntryType::Block => Kind::BlockDevice(device().map_err(bad)?),
            EntryType::Fifo => Kind::Fifo,
            other => return Err(TarError::Kind { path: lossy(path), kind: char::from(other.as_byte()) }),
        };
        // Only files have data: some programs give links the size of what they lead to, and folders a hint.
        self.skip(at, if matches!(kind, Kind::File { .. }) { size } else { 0 })?;
        Ok(kind)
    }

    fn entry(
        &self,
        at: u64,
        header: &Header,
        pax: Pax,
        path: Vec<u8>,
        link: Vec<u8>,
        kind: Kind,
    ) -> Result<Entry, TarError> {
        let bad = |error: io::Error| damaged(at, &error.to_string());
        let wrong = |what| damaged(at, what);
        let uid = number(&pax, "uid").map_err(wrong)?.map_or_else(|| header.uid().map_err(bad), Ok)?;
        let gid = number(&pax, "gid").map_err(wrong)?.map_or_else(|| header.gid().map_err(bad), Ok)?;
        let id = |id: u64| {
            u32::try_from(id).ok().filter(|_| id < NO_ID).ok_or_else(|| wrong("an owner is no 32-bit number"))
        };
        let mtime = match pax.get(&b"mtime"[..]) {
            Some(text) => time(text).ok_or_else(|| wrong("its time is none"))?,
            None => Mtime::from_seconds(i64::try_from(header.mtime().map_err(bad)?).unwrap_or(i64::MAX)),
        };
        let xattrs = pax
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value)))
            .collect();
        let mode = (header.mode().map_err(bad)? & 0o7777) as u16;
        Ok(Entry { path, link, kind, mode, uid: id(uid)?, gid: id(gid)?, mtime, xattrs })
    }

    /// Passes over an entry's data, which must be there.
    fn skip(&mut self, at: u64, size: u64) -> Result<(), TarError> {
        let end = size.checked_next_multiple_of(BLOCK).and_then(|size| self.next.checked_add(size));
        // The last block may be cut off behind the data.
        match end.filter(|_| size <= self.length - self.next) {
            Some(end) => self.next = end.min(self.length),
            None => return Err(damaged(at, "it ends within a file")),
        }
        Ok(())
    }

    fn data(&mut self, at: u64, size: u64, most: u64, what: &str) -> Result<Vec<u8>, TarError> {
        if size > most {
            return Err(damaged(at, what));
        }
        let begin = self.next;
        self.skip(at, size)?;
        self.source.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        self.source.by_ref().take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A name that is too long for a header.
    fn name(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        // With the NUL at its end.
        let mut name = self.data(at, size, MAX_NAME_BYTES + 1, "a path is longer than 4096 bytes")?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Records of the form `LENGTH KEYWORD=VALUE\n`, the length being that of the whole record in bytes.
    fn pax(&mut self, at: u64, size: u64) -> Result<Pax, TarError> {
        let bytes = self.data(at, size, MAX_PAX_BYTES, "an extended header is larger than 1 MiB")?;
        let mut records = Pax::new();
        let mut rest = bytes.as_slice();
        while rest.first().is_some_and(|byte| *byte != 0) {
            let (name, value, after) = record(rest).ok_or_else(|| damaged(at, "an extended header is malformed"))?;
            records.insert(name.to_vec(), value.to_vec());
            rest = after;
        }
        Ok(records)
    }
}

/// The first record: keyword, value, what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let (record, after) = bytes.split_at_checked(length)?;
    let body = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], after))
}

/// A decimal number, if the record is there. An empty value takes the header's.
fn number(pax: &Pax, name: &str) -> Result<Option<u64>, &'static str> {
    match pax.get(name.as_bytes()) {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => {
            let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            number.map(Some).ok_or("an extended header has a number that is none")
        }
    }
}

/// Seconds since 1970, with a fraction or without.
fn time(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    // Before 1970 the fraction counts backwards; nothing needs it.
    Some(Mtime { seconds, nanoseconds: if whole.starts_with('-') { 0 } else { nanoseconds } })
}

fn damaged(at: u64, what: &str) -> TarError {
    TarError::Damaged { at, what: what.to_owned() }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

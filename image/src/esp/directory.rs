//! FAT directories with long names, and where they and the files lie.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    EspError,
    format::{CLUSTER_SIZE, Chain, FIRST_CLUSTER, LABEL},
};

pub(super) const ENTRY_SIZE: usize = 32;
pub(super) const ATTR_VOLUME_ID: u8 = 0x08;
pub(super) const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_ARCHIVE: u8 = 0x20;
pub(super) const ATTR_LONG_NAME: u8 = 0x0f;
/// 1980-01-01: years since 1980, month, day.
const DATE: u16 = 1 << 5 | 1;
/// Characters of a long name in one entry.
pub(super) const LONG_PIECE: usize = 13;
/// Where they stand, in UTF-16.
pub(super) const LONG_PLACES: [usize; LONG_PIECE] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// `LAST_LONG_ENTRY`.
pub(super) const LAST_LONG: u8 = 0x40;
const MAX_NAME: usize = 255;

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
enum Target {
    Directory(usize),
    File(usize),
}

#[derive(Debug, Default)]
struct Directory {
    parent: usize,
    /// By lower-case name: the name as it is written, and what it stands for.
    entries: BTreeMap<String, (String, Target)>,
}

/// All directories, the root first.
#[derive(Debug)]
pub(super) struct Directories(Vec<Directory>);

/// Where everything lies.
#[derive(Debug)]
pub(super) struct Chains {
    directories: Vec<Chain>,
    /// By the files' indexes.
    pub(super) files: Vec<Chain>,
}

impl Chains {
    pub(super) fn all(&self) -> impl Iterator<Item = Chain> {
        self.directories.iter().chain(&self.files).copied()
    }
}

impl Directories {
    pub(super) fn new() -> Self {
        Self(vec![Directory::default()])
    }

    /// Adds the file number `index` at `path`, with the folders above it.
    pub(super) fn insert(&mut self, path: &str, index: usize) -> Result<(), EspError> {
        if !path.split('/').all(is_name) {
            return Err(EspError::BadPath(path.into()));
        }
        let mut at = 0;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let key = part.to_ascii_lowercase();
            let known = self.0[at].entries.get(&key).map(|(_, target)| *target);
            at = match (known, parts.peek()) {
                (None, None) => {
                    self.0[at].entries.insert(key, (part.into(), Target::File(index)));
                    return Ok(());
                }
                (None, Some(_)) => {
                    let new = self.0.len();
                    self.0.push(Directory { parent: at, entries: BTreeMap::new() });
                    self.0[at].entries.insert(key, (part.into(), Target::Directory(new)));
                    new
                }
                (Some(Target::Directory(next)), Some(_)) => next,
                _ => return Err(EspError::Duplicate(path.into())),
            };
        }
        Ok(())
    }

    /// Gives directories, then files of these sizes, their clusters; the bytes that all of them need come second.
    pub(super) fn place(&self, sizes: &[u64]) -> (Chains, u64) {
        let mut next = u64::from(FIRST_CLUSTER);
        let mut take = |size: u64| {
            let clusters = size.div_ceil(CLUSTER_SIZE);
            // Whatever does not fit into 32 bits does not fit into the ESP: the caller compares the sum.
            let chain = Chain { first: next as u32, clusters: clusters as u32 };
            next = next.saturating_add(clusters);
            chain
        };
        let directories = (0..self.0.len()).map(|index| take(self.entries(index, None).len() as u64)).collect();
        let files = sizes.iter().map(|size| take(*size)).collect();
        let chains = Chains { directories, files };
        (chains, (next - u64::from(FIRST_CLUSTER)).saturating_mul(CLUSTER_SIZE))
    }

    /// Every directory's first cluster and bytes.
    pub(super) fn encode(&self, chains: &Chains, sizes: &[u64]) -> impl Iterator<Item = (u32, Vec<u8>)> {
        (0..self.0.len())
            .map(move |index| (chains.directories[index].first, self.entries(index, Some((chains, sizes)))))
    }

    /// A directory's bytes; before anything is placed only their number counts.
    fn entries(&self, index: usize, placed: Option<(&Chains, &[u64])>) -> Vec<u8> {
        let directory = &self.0[index];
        let first = |index: usize| match (index, placed) {
            (0, _) | (_, None) => 0, // the root's number is not written
            (_, Some((chains, _))) => chains.directories[index].first,
        };
        let mut out = Vec::new();
        if index == 0 {
            out.extend(short_entry(LABEL, ATTR_VOLUME_ID, 0, 0));
        } else {
            out.extend(short_entry(*b".          ", ATTR_DIRECTORY, first(index), 0));
            out.extend(short_entry(*b"..         ", ATTR_DIRECTORY, first(directory.parent), 0));
        }
        let mut taken = BTreeSet::new();
        for (name, target) in directory.entries.values() {
            let (short, needs_long) = short_name(name, &mut taken);
            if needs_long {
                out.extend(long_entries(name, short));
            }
            let (attributes, cluster, size) = match (target, placed) {
                (Target::Directory(index), _) => (ATTR_DIRECTORY, first(*index), 0),
                (Target::File(index), Some((chains, sizes))) if sizes[*index] > 0 => {
                    (ATTR_ARCHIVE, chains.files[*index].first, sizes[*index] as u32)
                }
                (Target::File(_), _) => (ATTR_ARCHIVE, 0, 0),
            };
            out.extend(short_entry(short, attributes, cluster, size));
        }
        out
    }
}

fn is_name(part: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b' '..=b'~') && !b"\"*:<>?\\|".contains(&byte);
    (1..=MAX_NAME).contains(&part.len()) && part.bytes().all(allowed) && !part.ends_with(['.', ' '])
}

/// `DIR_*` fields of one entry.
fn short_entry(name: [u8; 11], attributes: u8, cluster: u32, size: u32) -> [u8; ENTRY_SIZE] {
    let mut entry = [0; ENTRY_SIZE];
    let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name);
    put(11, &[attributes]);
    put(16, &DATE.to_le_bytes()); // DIR_CrtDate
    put(18, &DATE.to_le_bytes()); // DIR_LstAccDate
    put(20, &((cluster >> 16) as u16).to_le_bytes());
    put(24, &DATE.to_le_bytes()); // DIR_WrtDate
    put(26, &(cluster as u16).to_le_bytes());
    put(28, &size.to_le_bytes());
    entry
}

/// `ChkSum`: ties a long name to the short one that follows it.
pub(super) fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The entries of a long name, last piece first, as they stand before the short one.
fn long_entries(name: &str, short: [u8; 11]) -> Vec<u8> {
    let checksum = checksum(&short);
    let units: Vec<u16> = name.encode_utf16().collect();
    let pieces = units.len().div_ceil(LONG_PIECE);
    let mut out = Vec::with_capacity(pieces * ENTRY_SIZE);
    for number in (0..pieces).rev() {
        let mut entry = [0; ENTRY_SIZE];
        entry[0] = (number as u8 + 1) | if number + 1 == pieces { LAST_LONG } else { 0 };
        entry[11] = ATTR_LONG_NAME;
        entry[13] = checksum;
        for (position, place) in LONG_PLACES.into_iter().enumerate() {
            let at = number * LONG_PIECE + position;
            // One NUL ends the name, 0xffff fills the entry.
            let unit = units.get(at).copied().unwrap_or(if at == units.len() { 0 } else { 0xffff });
            entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        out.extend(entry);
    }
    out
}

/// The 8.3 name, and whether a long one must say what the name really is.
fn short_name(name: &str, taken: &mut BTreeSet<[u8; 11]>) -> ([u8; 11], bool) {
    let (base, extension) = name.rsplit_once('.').filter(|(base, _)| !base.is_empty()).unwrap_or((name, ""));
    let fits = |byte: u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9') || b"$%'-_@~`!(){}^#&".contains(&byte);
    let is_short = base.len() <= 8 && extension.len() <= 3 && base.bytes().chain(extension.bytes()).all(fits);
    let join = |base: &[u8], extension: &[u8]| {
        let mut short = [b' '; 11];
        short[..base.len()].copy_from_slice(base);
        short[8..8 + extension.len()].copy_from_slice(extension);
        short
    };
    if is_short {
        let short = join(base.as_bytes(), extension.as_bytes());
        if taken.insert(short) {
            return (short, false);
        }
    }
    let reduce = |part: &str, length: usize| -> Vec<u8> {
        part.bytes().map(|byte| byte.to_ascii_uppercase()).filter(|byte| fits(*byte)).take(length).collect()
    };
    let extension = reduce(extension, 3);
    let mut number = 1;
    loop {
        let tail = format!("~{number}");
        let mut base = reduce(base, 8 - tail.len());
        base.extend(tail.bytes());
        let short = join(&base, &extension);
        if taken.insert(short) {
            return (short, true);
        }
        number += 1; // ends: there are fewer files than numbers that fit
    }
}

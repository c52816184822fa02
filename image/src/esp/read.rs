//! Reader of a FAT32 file system that somebody else may have written: where each file's bytes lie. Follows Microsoft's
//! "FAT: General Overview of On-Disk Format" 1.03, names as there. Every number in it is checked; what is read grows
//! with the files that there are, up to the limits below.

use std::{cell::RefCell, collections::BTreeSet};

use super::{
    directory::{
        ATTR_DIRECTORY, ATTR_LONG_NAME, ATTR_VOLUME_ID, ENTRY_SIZE, LAST_LONG, LONG_PIECE, LONG_PLACES, checksum,
    },
    format::FIRST_CLUSTER,
};
use crate::view::{ReadError, View, ensure};

/// Least clusters of FAT32, and most that are taken: 64 GiB in clusters of 4 KiB. More would only make readers slow.
const CLUSTERS: std::ops::RangeInclusive<u64> = 65_525..=1 << 24;
/// Most bytes of a directory: 65,536 entries, as FAT itself has it.
const MAX_DIRECTORY: u64 = 2 << 20;
/// Most files and folders in all: an ESP has some ten.
const MAX_ENTRIES: usize = 1 << 16;
/// `EOC`: this and more ends a chain.
const END_OF_CHAIN: u32 = 0x0fff_fff8;
const ENTRY_MASK: u32 = 0x0fff_ffff;
/// Bytes of a table that are read at once.
const TABLE_PIECE: u64 = 4096;
const DELETED: u8 = 0xe5;

/// A FAT32 file system.
#[derive(Debug)]
pub struct Fat<'a> {
    view: View<'a>,
    sector: u64,
    cluster: u64,
    clusters: u64,
    /// Where the first table begins, how long each is, and how many there are.
    table: u64,
    table_length: u64,
    tables: u64,
    /// Where the first cluster begins.
    data: u64,
    root: u32,
    info: u64,
    backup: u64,
    /// The piece of the first table that was read last, and its number.
    piece: RefCell<(u64, Vec<u8>)>,
}

/// A file of the file system.
#[derive(Debug)]
pub struct File<'a> {
    /// Its path, with slashes.
    pub path: String,
    /// Its bytes.
    pub content: View<'a>,
}

struct Entry {
    name: String,
    directory: bool,
    first: u32,
    size: u64,
}

impl<'a> Fat<'a> {
    /// Reads the boot sector.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(view: View<'a>) -> Result<Self, ReadError> {
        let boot: [u8; 512] = view.array(0)?;
        let short = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let word = |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        let require = |holds, what| ensure(holds, 0, what);
        require(boot[510..] == [0x55, 0xaa], "it has no boot sector of a FAT file system")?;
        let sector = short(11);
        require(matches!(sector, 512 | 1024 | 2048 | 4096), "BPB_BytsPerSec is wrong")?;
        require(boot[13].is_power_of_two(), "BPB_SecPerClus is wrong")?;
        let (cluster, tables) = (u64::from(boot[13]) * sector, u64::from(boot[16]));
        let (reserved, table_sectors) = (short(14), u64::from(word(36)));
        require(short(17) == 0 && short(22) == 0 && table_sectors > 0, "it is no FAT32")?;
        require(reserved > 0 && (1..=2).contains(&tables), "BPB_RsvdSecCnt or BPB_NumFATs is wrong")?;
        let sectors = u64::from(word(32));
        // No product here leaves 64 bits: factors have at most 32, 12 and 2.
        require(sectors * sector <= view.length(), "BPB_TotSec32 is more than the partition has")?;
        let head = reserved + tables * table_sectors;
        let clusters = sectors.saturating_sub(head) * sector / cluster;
        require(CLUSTERS.contains(&clusters), "it has a number of clusters that no FAT32 of ours has")?;
        require((clusters + 2) * 4 <= table_sectors * sector, "BPB_FATSz32 is too small")?;
        let (info, backup) = (short(48), short(50));
        require(info < reserved && backup + info < reserved, "BPB_FSInfo or BPB_BkBootSec is wrong")?;
        Ok(Self {
            sector,
            cluster,
            clusters,
            table: reserved * sector,
            table_length: table_sectors * sector,
            tables,
            data: head * sector,
            root: word(44),
            info: info * sector,
            backup: backup * sector,
            piece: RefCell::new((u64::MAX, Vec::new())),
            view,
        })
    }

    /// All files, sorted by path.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn files(&self) -> Result<Vec<File<'a>>, ReadError> {
        let (mut files, mut entries, mut seen) = (Vec::new(), 0, BTreeSet::new());
        let mut folders = vec![(String::new(), self.root)];
        while let Some((path, first)) = folders.pop() {
            let at = self.place(first)?;
            ensure(seen.insert(first), at, "a folder is in two places, or within itself")?;
            for entry in self.entries(first)? {
                entries += 1;
                ensure(entries <= MAX_ENTRIES, at, "it has more files than an ESP can have")?;
                let path = if path.is_empty() { entry.name } else { format!("{path}/{}", entry.name) };
                if entry.directory {
                    folders.push((path, entry.first));
                } else {
                    let content = if entry.size == 0 {
                        self.view.nothing()
                    } else {
                        let chain = self.chain(entry.first, entry.size.div_ceil(self.cluster))?;
                        let whole = chain.part(0, entry.size);
                        whole.ok_or(ReadError::Damaged { at, what: "a file's clusters end before the file does" })?
                    };
                    files.push(File { path, content });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// What is wrong with what no file needs: the copies of table and boot sector, and clusters that two files have.
    ///
    /// # Errors
    /// [`ReadError`]: the first fault that there is.
    pub fn check(&self, files: &[File<'a>]) -> Result<(), ReadError> {
        let copy = |at: u64, other: u64, length: u64, what| {
            let (mut left, mut right) = (vec![0; TABLE_PIECE as usize], vec![0; TABLE_PIECE as usize]);
            for from in (0..length).step_by(TABLE_PIECE as usize) {
                let here = (length - from).min(TABLE_PIECE) as usize;
                self.view.read_at(&mut left[..here], at + from)?;
                self.view.read_at(&mut right[..here], other + from)?;
                ensure(left[..here] == right[..here], other + from, what)?;
            }
            Ok::<_, ReadError>(())
        };
        copy(0, self.backup, self.sector, "the copy of the boot sector is not the same")?;
        // What is free is a hint, which nobody keeps in both copies.
        for at in [self.info, self.backup + self.info] {
            let info: [u8; 512] = self.view.array(at)?;
            let marks = [info.starts_with(b"RRaA"), info[484..488] == *b"rrAa", info[508..] == [0, 0, 0x55, 0xaa]];
            ensure(marks == [true; 3], at, "FSInfo lacks its signatures")?;
        }
        for number in 1..self.tables {
            let other = self.table + number * self.table_length;
            copy(self.table, other, self.table_length, "the copies of the allocation table are not the same")?;
        }
        let mut taken: Vec<(u64, u64)> = files.iter().flat_map(|file| file.content.places()).collect();
        taken.sort_unstable();
        let shared = taken.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0);
        ensure(shared.is_none(), self.table, "two files have the same clusters")
    }

    /// Where a cluster begins.
    fn place(&self, cluster: u32) -> Result<u64, ReadError> {
        let index = u64::from(cluster).checked_sub(u64::from(FIRST_CLUSTER)).filter(|index| *index < self.clusters);
        let index = index.ok_or(ReadError::Damaged { at: self.table, what: "a cluster is named that is not there" })?;
        Ok(self.data + index * self.cluster)
    }

    /// The clusters from `first` on, of which there may be at most `most`.
    fn chain(&self, first: u32, most: u64) -> Result<View<'a>, ReadError> {
        let mut chain = self.view.nothing();
        let mut cluster = first;
        for _ in 0..most {
            let place = self.place(cluster)?;
            let here = self.view.part(place, self.cluster);
            chain.append(&here.ok_or(ReadError::Damaged { at: place, what: "a cluster lies outside of it" })?)?;
            cluster = self.next(cluster)?;
            if cluster >= END_OF_CHAIN {
                return Ok(chain);
            }
        }
        Err(ReadError::Damaged { at: self.table + u64::from(first) * 4, what: "a chain of clusters has no end" })
    }

    /// What the table says of a cluster that [`Fat::place`] knows.
    fn next(&self, cluster: u32) -> Result<u32, ReadError> {
        let at = u64::from(cluster) * 4;
        let mut piece = self.piece.borrow_mut();
        let number = at / TABLE_PIECE;
        if piece.0 != number {
            let start = number * TABLE_PIECE;
            let mut bytes = vec![0; TABLE_PIECE.min(self.table_length - start) as usize];
            self.view.read_at(&mut bytes, self.table + start)?;
            *piece = (number, bytes);
        }
        let entry = piece.1.get((at % TABLE_PIECE) as usize..).and_then(|rest| rest.first_chunk());
        Ok(entry.map_or(END_OF_CHAIN, |entry| u32::from_le_bytes(*entry) & ENTRY_MASK))
    }

    /// A directory's entries without `.`, `..` and the volume's label.
    fn entries(&self, first: u32) -> Result<Vec<Entry>, ReadError> {
        let chain = self.chain(first, MAX_DIRECTORY.div_ceil(self.cluster))?;
        let bytes = chain.bytes(MAX_DIRECTORY.max(self.cluster))?;
        let mut long = LongName::default();
        let (mut entries, mut names) = (Vec::new(), BTreeSet::new());
        for (number, entry) in bytes.chunks_exact(ENTRY_SIZE).enumerate() {
            let at = chain.place((number * ENTRY_SIZE) as u64).and_then(|at| at.checked_sub(self.view.place(0)?));
            let at = at.unwrap_or(self.data);
            match (entry[0], entry[11]) {
                (0, _) => break,
                (DELETED, _) => long = LongName::default(),
                (_, attributes) if attributes & 0x3f == ATTR_LONG_NAME => long.add(entry),
                (_, attributes) if attributes & ATTR_VOLUME_ID != 0 => long = LongName::default(),
                (_, attributes) => {
                    let short: [u8; 11] = entry.first_chunk().copied().unwrap_or_default();
                    let name = std::mem::take(&mut long).finish(short).unwrap_or_else(|| short_name(short, entry[12]));
                    if matches!(name.as_str(), "." | "..") {
                        continue;
                    }
                    let proper = |c: char| !c.is_control() && c != '/' && c != '\\';
                    ensure(!name.is_empty() && name.chars().all(proper), at, "a file has a name that FAT can't have")?;
                    ensure(names.insert(name.to_lowercase()), at, "two files have the same name")?;
                    let number = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
                    let size = u64::from(number(28) | number(30) << 16);
                    let first = number(20) << 16 | number(26);
                    entries.push(Entry { name, directory: attributes & ATTR_DIRECTORY != 0, first, size });
                }
            }
        }
        Ok(entries)
    }
}

/// A long name while its entries come, the last piece first.
#[derive(Default)]
struct LongName {
    pieces: Vec<[u16; LONG_PIECE]>,
    /// How many are to come.
    left: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let order = entry[0] & !LAST_LONG;
        if entry[0] & LAST_LONG != 0 {
            // 20 pieces hold 255 characters.
            *self = Self { pieces: Vec::new(), left: if order <= 20 { order } else { 0 }, checksum: entry[13] };
        }
        if order == 0 || order != self.left || entry[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.pieces.push(LONG_PLACES.map(|at| u16::from_le_bytes([entry[at], entry[at + 1]])));
        self.left -= 1;
    }

    /// The name; none if pieces are missing, or it is another entry's.
    fn finish(self, short: [u8; 11]) -> Option<String> {
        if self.pieces.is_empty() || self.left > 0 || self.checksum != checksum(&short) {
            return None;
        }
        let units = self.pieces.iter().rev().flatten().copied().take_while(|unit| *unit != 0);
        char::decode_utf16(units).collect::<Result<_, _>>().ok()
    }
}

/// `case`: bits of `DIR_NTRes` by which Linux and Windows keep a name in lower case without a long one.
fn short_name(short: [u8; 11], case: u8) -> String {
    const LOWER_BASE: u8 = 0x08;
    const LOWER_EXTENSION: u8 = 0x10;
    let text = |bytes: &[u8], lower: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end_matches(' ').to_owned();
        if lower { text.to_lowercase() } else { text }
    };
    let base = text(&short[..8], case & LOWER_BASE != 0);
    let extension = text(&short[8..], case & LOWER_EXTENSION != 0);
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt, path::Path};

    use super::*;
    use crate::{
        esp::{EspFile, SIZE, write},
        sector::SectorSize,
        source::Source,
        testing::{Flips, run},
    };

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn sample() -> Vec<EspFile> {
        let file = |path: &str, size| EspFile { path: path.into(), content: Source::Bytes(bytes(size)).into() };
        let mut files = vec![
            file("EFI/Linux/rackstick_2026.11.1+3.efi", 300_003),
            file("EFI/BOOT/BOOTX64.EFI", 100_000),
            file("loader/empty", 0),
        ];
        files.extend((0..40).map(|n| file(&format!("many/a name of some length {n}.conf"), n)));
        files
    }

    fn make(path: &Path, sector: SectorSize) -> fs::File {
        let disk = fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        disk.set_len(SIZE).unwrap();
        write(&disk, sector, 0, 7, &sample()).unwrap();
        disk
    }

    fn read(disk: &fs::File) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        let fat = Fat::open(View::whole(disk).unwrap())?;
        let files = fat.files()?;
        fat.check(&files)?;
        files.into_iter().map(|file| Ok((file.path, file.content.bytes(1 << 20)?))).collect()
    }

    #[test]
    fn what_was_written_is_read_back_for_sectors_of_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        for sector in SectorSize::ALL {
            let disk = make(&folder.path().join("esp"), sector);
            let mut expected: Vec<_> =
                sample().into_iter().map(|EspFile { path, content }| (path, bytes(content.size() as usize))).collect();
            expected.sort();
            assert!(read(&disk).unwrap() == expected, "{sector}");
        }
    }

    #[test]
    fn what_mtools_wrote_in_pieces_is_read_as_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::File::create(at("esp")).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.fat", ["-F32", "-s1", at("esp").to_str().unwrap()]);
        let mtool = |tool, arguments: &[&str]| run(tool, [&["-i", at("esp").to_str().unwrap()], arguments].concat());
        let name = at("file").to_str().unwrap().to_owned();
        for (n, size) in [(1, 5000), (2, 5000), (3, 60_000)] {
            fs::write(&name, bytes(size)).unwrap();
            mtool("mcopy", &[&name, &format!("::file{n}")]);
            if n == 2 {
                mtool("mdel", &["::file1"]);
            }
        }
        mtool("mmd", &["::Ein Ordner"]);
        mtool("mcopy", &[&name, "::Ein Ordner/ein langer Name.txt"]);
        let disk = fs::File::open(at("esp")).unwrap();
        let found = read(&disk).unwrap();
        let sizes: Vec<(&str, usize)> = found.iter().map(|(path, bytes)| (path.as_str(), bytes.len())).collect();
        assert_eq!(sizes, [("Ein Ordner/ein langer Name.txt", 60_000), ("file2", 5000), ("file3", 60_000)]);
        assert!(found.iter().all(|(_, content)| *content == bytes(content.len())));
    }

    #[test]
    fn no_byte_of_tables_and_directories_makes_the_reader_panic_or_run_on() {
        let folder = tempfile::tempdir().unwrap();
        let disk = make(&folder.path().join("esp"), SectorSize::B512);
        let fat = Fat::open(View::whole(&disk).unwrap()).unwrap();
        let (table, data) = (fat.table, fat.data);
        let (mut noticed, mut all) = (0, 0);
        let places = (0..600).step_by(2).chain((table..table + 1024).step_by(5));
        let places = places.chain((data..data + 8000).step_by(17));
        for flip in Flips::new(&disk, places) {
            all += 1;
            noticed += u32::from(flip.judge(|| read(&disk)).is_err());
        }
        // Names, times and boot code can be anything.
        assert!(noticed * 4 > all, "{noticed} of {all}");
        for length in [0, 511, 512, 4096, 1 << 20, SIZE - 1] {
            disk.set_len(length).unwrap();
            assert!(read(&disk).is_err(), "{length}");
        }
    }

    #[test]
    fn a_folder_within_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let disk = make(&folder.path().join("esp"), SectorSize::B512);
        let fat = Fat::open(View::whole(&disk).unwrap()).unwrap();
        // The root's second entry behind the label, EFI, becomes the root itself.
        disk.write_all_at(&(fat.root as u16).to_le_bytes(), fat.data + 32 + 26).unwrap();
        assert!(read(&disk).unwrap_err().to_string().contains("within itself"));
    }
}

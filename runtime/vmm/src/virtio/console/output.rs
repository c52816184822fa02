//! Where console output goes: standard output, or a file that never grows beyond its limit.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A sink for what the guest prints.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file with a limit.
    File(LimitedFile),
}

impl Output {
    /// Opens the file at `path` to append to it; see [`LimitedFile`].
    pub fn file(path: &Path, limit_kib: u32) -> io::Result<Self> {
        LimitedFile::open(path, u64::from(limit_kib) * 1024).map(Self::File)
    }

    /// Writes all of `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File(file) => file.write(bytes),
        }
    }
}

/// A file of at most `limit` bytes: when full it is renamed to `<path>.1`, over the one before, and begun anew.
#[derive(Debug)]
pub struct LimitedFile {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl LimitedFile {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.into(), file, length, limit: limit.max(1) })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.length >= self.limit {
                let mut old = self.path.clone().into_os_string();
                old.push(".1");
                fs::rename(&self.path, old)?;
                *self = Self::open(&self.path, self.limit)?;
            }
            let room = usize::try_from(self.limit - self.length).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.file.write_all(now)?;
            self.length += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_guest_fills_two_files_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut output = Output::file(&path, 1).unwrap();
        let all: Vec<u8> = (0..10_000_u32).flat_map(|number| number.to_le_bytes()).collect();
        all.chunks(777).for_each(|chunk| output.write(chunk).unwrap());
        let (new, old) = (fs::read(&path).unwrap(), fs::read(folder.path().join("console.1")).unwrap());
        assert_eq!((old.len(), fs::read_dir(folder.path()).unwrap().count()), (1024, 2));
        assert!(!new.is_empty() && new.len() <= 1024);
        assert!(all.ends_with(&[old, new].concat()));
    }

    #[test]
    fn a_restarted_guest_appends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        for _ in 0..2 {
            Output::file(&path, 1).unwrap().write(&[b'x'; 700]).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap().len(), 1400 - 1024);
    }
}

//! The two kinds of digest, kept apart by type: SHA-256 of a file's bytes, and its fs-verity digest.

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::FileExt,
    path::Path,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest;

use crate::holes::next_data;

/// Bytes read at once: large enough that system calls do not count, small enough for the second-level cache.
const READ_SIZE: usize = 256 << 10;
/// Zeroes hashed at once: they stay in the first-level cache.
const ZEROES: usize = 16 << 10;

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;
            fn from_str(text: &str) -> Result<Self, ParseDigestError> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest!(
    /// SHA-256 of a file's bytes.
    Sha256
);
digest!(
    /// fs-verity digest of a file: SHA-256, 4096-byte blocks, no salt.
    VerityDigest
);

impl Sha256 {
    /// That of these bytes.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// That of all that `source` gives until its end.
    pub fn of_reader(mut source: impl Read) -> io::Result<Self> {
        let mut hasher = sha2::Sha256::new();
        let mut buffer = vec![0; READ_SIZE];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(Self(hasher.finalize().into())),
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// That of the file at `path`. Its holes are not read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::of_open(&File::open(path)?)
    }

    /// That of all of an open file. Moves its offset.
    pub fn of_open(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Self::of_reader(file);
        }
        let (mut hasher, mut stretches, mut spare) = (StretchHasher::default(), Stretches::of(file), Vec::new());
        while let Some(stretch) = stretches.next(metadata.len(), spare)? {
            spare = hasher.update(stretch);
        }
        Ok(hasher.finish())
    }
}

/// A stretch of a file.
pub(crate) enum Stretch {
    /// Bytes.
    Data(Vec<u8>),
    /// So many zeroes that no disk holds.
    Hole(u64),
}

/// Reads a regular file in stretches that are not long.
pub(crate) struct Stretches<'a> {
    file: &'a File,
    at: u64,
    /// Where the data that was found ends.
    data_end: u64,
}

impl<'a> Stretches<'a> {
    pub(crate) fn of(file: &'a File) -> Self {
        Self { file, at: 0, data_end: 0 }
    }

    /// The next stretch before byte `end`, to which the file must reach; none if that was reached. Moves the file's
    /// offset. The bytes come in `spare`, whatever it holds.
    pub(crate) fn next(&mut self, end: u64, mut spare: Vec<u8>) -> io::Result<Option<Stretch>> {
        if self.at >= end {
            return Ok(None);
        }
        if self.at >= self.data_end {
            let (data, hole) = next_data(self.file, self.at, end)?;
            self.data_end = hole;
            if data > self.at {
                let length = data - self.at;
                self.at = data;
                return Ok(Some(Stretch::Hole(length)));
            }
        }
        let here = (self.data_end.min(end) - self.at).min(READ_SIZE as u64);
        spare.resize(here as usize, 0);
        self.file.read_exact_at(&mut spare, self.at)?;
        self.at += here;
        Ok(Some(Stretch::Data(spare)))
    }
}

/// The SHA-256 of stretches.
#[derive(Default)]
pub(crate) struct StretchHasher(sha2::Sha256);

impl StretchHasher {
    /// Goes on, and gives the stretch's memory back.
    pub(crate) fn update(&mut self, stretch: Stretch) -> Vec<u8> {
        match stretch {
            Stretch::Data(bytes) => {
                self.0.update(&bytes);
                bytes
            }
            Stretch::Hole(mut left) => {
                let zeroes = [0; ZEROES];
                while left > 0 {
                    let here = left.min(ZEROES as u64);
                    self.0.update(&zeroes[..here as usize]);
                    left -= here;
                }
                Vec::new()
            }
        }
    }

    /// The digest of all up to there.
    pub(crate) fn finish(self) -> Sha256 {
        Sha256(self.0.finalize().into())
    }
}

/// A digest that is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: 64 lower-case hexadecimal digits are needed")]
pub struct ParseDigestError(String);

fn parse(text: &str) -> Result<[u8; 32], ParseDigestError> {
    let bad = || ParseDigestError(text.chars().take(80).collect());
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(bad());
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(bad()),
    };
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_readers_and_bytes_have_the_digest_that_sha256sum_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for size in [0, 1, READ_SIZE, 3 * READ_SIZE + 5] {
            let bytes: Vec<u8> = (0..size).map(|at| (at >> 3) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let said = crate::testing::run("sha256sum", [&path]);
            let digest = Sha256::of_file(&path).unwrap();
            assert_eq!(digest.to_string(), said[..64], "{size} bytes");
            assert_eq!((Sha256::of(&bytes), Sha256::of_reader(bytes.as_slice()).unwrap()), (digest, digest));
        }
    }

    #[test]
    fn a_sparse_file_has_the_digest_that_sha256sum_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        // Holes at the begin, between, at the end, and all of it.
        for data in [&[][..], &[5 << 20][..], &[0, 3 << 20, (9 << 20) - 3]] {
            let file = File::create(&path).unwrap();
            file.set_len(9 << 20).unwrap();
            data.iter().for_each(|at| file.write_all_at(b"abc", *at).unwrap());
            let said = crate::testing::run("sha256sum", [&path]);
            assert_eq!(Sha256::of_file(&path).unwrap().to_string(), said[..64], "{data:?}");
        }
    }

    #[test]
    fn only_64_lower_case_digits_are_a_digest() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<Sha256>().unwrap().to_string(), text);
        for bad in ["", "00FF", &"0".repeat(63), &"0".repeat(65), &"G".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<VerityDigest>().is_err(), "{bad}");
        }
    }
}

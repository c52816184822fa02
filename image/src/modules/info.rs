//! What a module says of itself: the section `.modinfo` of its ELF file, NUL-terminated `key=value` strings
//! (Linux, include/linux/moduleparam.h and scripts/mod/modpost.c).

use object::{Object, ObjectSection};

use super::{Module, normalise};

/// One module with its aliases, as read from its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// What the index holds of it.
    pub module: Module,
    /// Its aliases.
    pub aliases: Vec<String>,
    /// The kernel it was built for, `uname -r`.
    pub release: String,
}

/// Why a module can't be read.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// Not an ELF object.
    #[error("{path} is not an ELF module: {source}; if it is compressed, decompress it first")]
    NotElf {
        /// The file.
        path: String,
        /// What the ELF reader says.
        source: object::Error,
    },
    /// No `.modinfo` in it.
    #[error("{path} has no section .modinfo; it is no kernel module")]
    NoModinfo {
        /// The file.
        path: String,
    },
    /// A string that the index can't hold.
    #[error("{path}: its .modinfo holds {text:?}, which is not printable text; the file is damaged")]
    NotText {
        /// The file.
        path: String,
        /// The beginning of the string.
        text: String,
    },
    /// Its name is not one.
    #[error("{path} is not the path of a module: it must end in .ko or .ko.xz and hold no blanks")]
    BadPath {
        /// The file.
        path: String,
    },
}

/// Longest value accepted, in bytes; the longest in Debian's kernel has some 200. Keeps a damaged file from filling the
/// index.
const MAX_VALUE: usize = 4096;

/// The module's name in a path such as `kernel/fs/erofs/erofs.ko.xz`; none if it is the path of something else.
pub fn name_of_path(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let stem = file.find(".ko").map(|end| &file[..end])?;
    (!stem.is_empty()).then(|| normalise(stem).into_owned())
}

impl ModuleInfo {
    /// Reads the module whose path below `/lib/modules/<release>` is `path` and whose decompressed content is `elf`.
    ///
    /// # Errors
    /// [`InfoError`], with the path.
    pub fn read(path: &str, elf: &[u8]) -> Result<Self, InfoError> {
        let name = name_of_path(path)
            .filter(|_| !path.contains(char::is_whitespace) && !path.contains(char::is_control))
            .ok_or_else(|| InfoError::BadPath { path: path.to_owned() })?;
        let file = object::File::parse(elf).map_err(|source| InfoError::NotElf { path: path.to_owned(), source })?;
        let section = file.section_by_name(".modinfo").ok_or_else(|| InfoError::NoModinfo { path: path.to_owned() })?;
        let data = section.data().map_err(|source| InfoError::NotElf { path: path.to_owned(), source })?;

        let mut info = ModuleInfo {
            module: Module {
                name,
                path: path.to_owned(),
                depends: Vec::new(),
                soft_before: Vec::new(),
                soft_after: Vec::new(),
                weak: Vec::new(),
                firmware: Vec::new(),
            },
            aliases: Vec::new(),
            release: String::new(),
        };
        for entry in data.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
            let Some(equals) = entry.iter().position(|byte| *byte == b'=') else { continue };
            let (key, value) = (&entry[..equals], &entry[equals + 1..]);
            // Other keys (author, parameter descriptions) hold any encoding and do not concern us.
            if [b"alias".as_slice(), b"depends", b"softdep", b"weakdep", b"firmware", b"vermagic"].contains(&key) {
                let text = std::str::from_utf8(value)
                    .ok()
                    .filter(|text| text.len() <= MAX_VALUE && !text.contains(|c: char| c.is_control()))
                    .ok_or_else(|| InfoError::NotText {
                        path: path.to_owned(),
                        text: String::from_utf8_lossy(value).chars().take(80).collect(),
                    })?;
                info.entry(key, text);
            }
        }
        Ok(info)
    }

    fn entry(&mut self, key: &[u8], value: &str) {
        match key {
            b"alias" if !value.is_empty() => self.aliases.push(value.to_owned()),
            b"depends" => self.module.depends.extend(
                value
                    .split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .map(|name| normalise(name).into_owned()),
            ),
            b"softdep" => self.soft(value),
            b"weakdep" => self.module.weak.extend(value.split_whitespace().map(str::to_owned)),
            b"firmware" if !value.contains(char::is_whitespace) => self.module.firmware.push(value.to_owned()),
            // "6.12.57+deb13-cloud-amd64 SMP preempt mod_unload modversions": the release is the first word.
            b"vermagic" => self.release = value.split(' ').next().unwrap_or_default().to_owned(),
            _ => {}
        }
    }

    /// `pre: a b post: c`, as in modprobe.d(5).
    fn soft(&mut self, value: &str) {
        let mut list: Option<&mut Vec<String>> = None;
        for word in value.split_whitespace() {
            match word {
                "pre:" => list = Some(&mut self.module.soft_before),
                "post:" => list = Some(&mut self.module.soft_after),
                name => {
                    if let Some(list) = &mut list {
                        list.push(name.to_owned());
                    }
                }
            }
        }
    }
}

/// The entries of `modules.builtin.modinfo`: NUL-terminated `module.key=value`.
pub(super) fn builtin_entries(data: &[u8]) -> impl Iterator<Item = (&str, &str, &str)> {
    data.split(|byte| *byte == 0).filter_map(|entry| {
        let (name, rest) = std::str::from_utf8(entry).ok()?.split_once('.')?;
        let (key, value) = rest.split_once('=')?;
        (!value.contains(char::is_control)).then_some((name, key, value))
    })
}

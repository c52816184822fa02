//! The values of secrets that a user gives: a folder with files `<guest>/<secret>`, held against what the guests of an
//! image want, and the bytes that go into the slot on the image's ESP.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    manifest::Manifest,
    recipe::closest,
    secrets::{self, FillError, SLOT_SIZE, VALUE_MAX, Value, Values},
    view::ReadError,
};

use crate::image::{Disk, Host, ImageError, Parts, only_host};

/// Why secrets can't be given. No value is in any of these.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It was built by an earlier version.
    #[error("{} has no place for secrets: build it again with this version", .0.display())]
    NoSlot(PathBuf),
    /// The ESP.
    #[error("can't read the ESP of {}: {source}", .path.display())]
    Esp {
        /// The image.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
    /// A file or folder of the user's.
    #[error("can't read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image, when they are put into it.
    #[error("can't write to {}: {source}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a folder in the folder, or not a file in that.
    #[error("{} is no {wanted}: secrets are files `DIR/<guest>/<secret>`", .path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// A folder without any.
    #[error("{} holds no secret: they are files `DIR/<guest>/<secret>`; the image wants {wanted}", .folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
        /// Which the image wants.
        wanted: String,
    },
    /// The image has no such guest.
    #[error("{} is for a guest that the image does not have; {hint}", .path.display())]
    Guest {
        /// The folder.
        path: PathBuf,
        /// Which there are.
        hint: String,
    },
    /// The guest wants no such secret.
    #[error("{} is no secret that guest `{guest}` wants; {hint}", .path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// The guest.
        guest: String,
        /// Which it wants.
        hint: String,
    },
    /// Nothing, or too much.
    #[error("{} has {size} bytes, and a secret has 1 to {VALUE_MAX}", .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size, as far as it was looked at.
        size: u64,
    },
    /// All together.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// Where the slot of an image is, and what its guests want.
#[derive(Debug)]
pub struct Wanted {
    /// Where the slot's bytes lie on the disk, and how many are there.
    pub places: Vec<(u64, u64)>,
    /// The names of the secrets of each guest.
    by_guest: BTreeMap<String, BTreeSet<String>>,
    /// What is in the slot already.
    there: Values,
}

impl Wanted {
    /// What an image wants; none if it has neither a slot nor guests with secrets, as one built by an earlier version.
    pub fn of(disk: &Disk) -> Result<Option<Self>, SecretsError> {
        let damaged = |fault| disk.damaged(fault);
        let parts = Parts::find(disk)?.map_err(damaged)?;
        let (_, files) = parts.files().map_err(damaged)?;
        let host = only_host(&files).and_then(Host::read).map_err(damaged)?;
        let slot = secrets::find(&parts.esp);
        let slot = slot.map_err(|source| SecretsError::Esp { path: disk.path.clone(), source })?;
        let Some(slot) = slot else { return Ok(None) };
        let bytes = slot.bytes(SLOT_SIZE);
        let bytes = bytes.map_err(|source| SecretsError::Esp { path: disk.path.clone(), source })?;
        // What is damaged there, the rack would throw away as well.
        let there = secrets::read(&bytes).unwrap_or_default();
        Ok(Some(Self { places: slot.places().collect(), by_guest: by_guest(&host.manifest), there }))
    }

    /// Those that are neither in the slot nor among the values, as `guest/secret`.
    pub fn missing(&self, given: &Values) -> Vec<String> {
        self.all()
            .filter(|key| !given.contains_key(key) && !self.there.contains_key(key))
            .map(|(guest, name)| format!("{guest}/{name}"))
            .collect()
    }

    fn all(&self) -> impl Iterator<Item = (String, String)> {
        self.by_guest.iter().flat_map(|(guest, names)| names.iter().map(move |name| (guest.clone(), name.clone())))
    }

    /// Reads a folder of values, each of which must be wanted; at least one.
    pub fn read(&self, folder: &Path) -> Result<Values, SecretsError> {
        let mut values = Values::new();
        for (guest, path) in list(folder)? {
            if !path.is_dir() {
                return Err(SecretsError::Kind { path, wanted: "folder of a guest" });
            }
            let Some(wanted) = self.by_guest.get(&guest) else {
                let hint = hint(&guest, self.by_guest.keys(), "with secrets there are");
                return Err(SecretsError::Guest { path, hint });
            };
            for (name, path) in list(&path)? {
                if !wanted.contains(&name) {
                    let hint = hint(&name, wanted.iter(), "it wants");
                    return Err(SecretsError::Secret { path, guest, hint });
                }
                values.insert((guest.clone(), name), value(path)?);
            }
        }
        if values.is_empty() {
            let wanted = self.all().map(|(guest, name)| format!("{guest}/{name}")).collect::<Vec<_>>();
            let wanted = if wanted.is_empty() { "none".to_owned() } else { wanted.join(", ") };
            return Err(SecretsError::Empty { folder: folder.to_owned(), wanted });
        }
        Ok(values)
    }
}

fn by_guest(manifest: &Manifest) -> BTreeMap<String, BTreeSet<String>> {
    let names = |guest| manifest.secrets(guest).iter().map(|secret| secret.name.clone()).collect::<BTreeSet<_>>();
    let all = manifest.guests.iter().map(|guest| (guest.name.clone(), names(guest)));
    all.filter(|(_, names)| !names.is_empty()).collect()
}

fn hint<'a>(name: &str, known: impl Iterator<Item = &'a String> + Clone, before: &str) -> String {
    match closest(name, known.clone().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let known: Vec<&str> = known.map(String::as_str).collect();
            format!("{before}: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })
        }
    }
}

/// What is in a folder, by name; not what is hidden, as `.git` and `.gitignore`.
fn list(folder: &Path) -> Result<BTreeMap<String, PathBuf>, SecretsError> {
    let failed = |source| SecretsError::Read { path: folder.to_owned(), source };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            found.insert(name, entry.path());
        }
    }
    Ok(found)
}

fn value(path: PathBuf) -> Result<Value, SecretsError> {
    if !path.is_file() {
        return Err(SecretsError::Kind { path, wanted: "file" });
    }
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(VALUE_MAX as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|source| SecretsError::Read { path: path.clone(), source })?;
    let size = bytes.len() as u64;
    Value::new(bytes).ok_or(SecretsError::Size { path, size })
}

/// What goes into the slot of a disk.
pub struct Filling {
    /// Where on the disk, and how much.
    pub places: Vec<(u64, u64)>,
    /// The bytes of all places.
    pub bytes: Vec<u8>,
}

impl Filling {
    /// The slot that `wanted` found, with these values beside and over those that are there.
    pub fn new(wanted: Wanted, values: Values) -> Result<Self, SecretsError> {
        let mut all = wanted.there;
        all.extend(values);
        Ok(Self { places: wanted.places, bytes: secrets::fill(&all)? })
    }

    /// Writes it into an image that is a file.
    pub fn write(&self, image: &Path) -> Result<(), SecretsError> {
        let written = File::options().write(true).open(image).and_then(|file| {
            self.pieces().try_for_each(|(at, bytes)| file.write_all_at(bytes, at))?;
            file.sync_data()
        });
        written.map_err(|source| SecretsError::Write { path: image.to_owned(), source })
    }

    /// An empty slot in the same place.
    pub fn emptied(&self) -> Self {
        Self { places: self.places.clone(), bytes: vec![0; SLOT_SIZE as usize] }
    }

    /// Each place with its bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.places.iter().map_while(move |(at, length)| {
            let (now, later) = rest.split_at_checked(usize::try_from(*length).ok()?)?;
            rest = later;
            Some((*at, now))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(of: &[(&str, &[&str])]) -> Wanted {
        let by_guest = of.iter().map(|(guest, names)| {
            (guest.to_string(), names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>())
        });
        let places = vec![(8192, 4096), (65536, SLOT_SIZE - 4096)];
        Wanted { places, by_guest: by_guest.collect(), there: Values::new() }
    }

    /// A folder with these files.
    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_gives_each_guest_its_own_values_byte_by_byte() {
        let wanted = wanted(&[("mail", &["dkim", "tls"]), ("web", &["tls"])]);
        let folder =
            folder(&[("mail/dkim", b"one\n"), ("web/tls", b"\0\xff"), (".git/config", b""), ("web/.keep", b"")]);
        let values = wanted.read(folder.path()).unwrap();
        let found: Vec<_> = values.iter().map(|((guest, name), value)| (&**guest, &**name, value.bytes())).collect();
        assert_eq!(found, [("mail", "dkim", &b"one\n"[..]), ("web", "tls", b"\0\xff")]);
        assert_eq!(wanted.missing(&values), ["mail/tls"]);
        let filling = Filling::new(wanted, values.clone()).unwrap();
        let pieces: Vec<_> = filling.pieces().map(|(at, bytes)| (at, bytes.len() as u64)).collect();
        assert_eq!(pieces, [(8192, 4096), (65536, SLOT_SIZE - 4096)]);
        assert_eq!(secrets::read(&filling.bytes).unwrap(), values);
        assert!(filling.emptied().pieces().all(|(_, bytes)| secrets::is_empty(bytes)));
    }

    #[test]
    fn what_is_in_the_slot_already_stays_unless_it_is_given_again() {
        let there = [("dkim", "old"), ("tls", "old")];
        let given = folder(&[("mail/tls", b"new")]);
        let value = |text: &str| Value::new(text.as_bytes().to_vec()).unwrap();
        let of = |values: &[(&str, &str)]| -> Values {
            values.iter().map(|(name, text)| (("mail".to_owned(), (*name).to_owned()), value(text))).collect()
        };
        let wanted = Wanted { there: of(&there), ..wanted(&[("mail", &["dkim", "tls"])]) };
        let values = wanted.read(given.path()).unwrap();
        assert_eq!(wanted.missing(&values), [""; 0]);
        let filling = Filling::new(wanted, values).unwrap();
        assert_eq!(secrets::read(&filling.bytes).unwrap(), of(&[("dkim", "old"), ("tls", "new")]));
    }

    #[test]
    fn what_no_guest_wants_is_refused_with_what_was_meant_and_never_with_a_value() {
        let wanted = wanted(&[("mail", &["dkim"])]);
        let long = vec![b'x'; VALUE_MAX + 1];
        for (path, content, says) in [
            ("mial/dkim", &b"hunter2"[..], "did you mean `mail`?"),
            ("web/tls", b"hunter2", "with secrets there are: mail"),
            ("mail/dkmi", b"hunter2", "did you mean `dkim`?"),
            ("mail/tls", b"hunter2", "it wants: dkim"),
            ("dkim", b"hunter2", "is no folder of a guest"),
            ("mail/dkim/x", b"hunter2", "is no file"),
            ("mail/dkim", b"", "has 0 bytes"),
            ("mail/dkim", &long, "has 65537 bytes"),
        ] {
            let folder = folder(&[(path, content)]);
            let error = wanted.read(folder.path()).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(said.contains(says) && !said.contains("hunter2"), "{path}: {said}");
        }
        let empty = folder(&[(".gitignore", b"*")]);
        let said = wanted.read(empty.path()).unwrap_err().to_string();
        assert!(said.contains("holds no secret") && said.ends_with("the image wants mail/dkim"), "{said}");
        assert!(matches!(wanted.read(Path::new("/nowhere")), Err(SecretsError::Read { .. })));
    }
}

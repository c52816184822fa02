//! Secrets of guests: what somebody has put into the slot on the ESP beside the data partition goes to
//! `state/secrets/<guest>/<name>` on that partition, where it is kept, and the slot is emptied. A cut at any moment
//! leaves each value in one of both places or in both.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    recipe::is_name,
    secrets::{self, HEAD_SIZE, KEPT, SLOT_SIZE, VALUE_MAX, Value, Values},
    view::{self, View},
};

use super::{data, data::find, keep};

const FOLDER_MODE: u32 = 0o700;
const MODE: u32 = 0o600;

/// Why not all secrets can be had or kept. Guests have those that there are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data partition is gone already, or its disk has no ESP.
    #[error("new secrets can't be looked for: the data partition's disk has no ESP")]
    NoEsp,
    /// The ESP.
    #[error("new secrets can't be looked for on {}: {source}", device.display())]
    Esp {
        /// Its device.
        device: PathBuf,
        /// Why.
        source: view::ReadError,
    },
    /// They can't be taken out of the slot.
    #[error("the slot for secrets on {} can't be emptied, and they stay there: {source}", device.display())]
    Empty {
        /// The ESP's device.
        device: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The data partition.
    #[error("secrets can't be kept in {}: {source}", path.display())]
    Keep {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The same.
    #[error("secrets can't be read from {}: {source}", path.display())]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// All secrets that the rack has, and what went wrong.
pub fn bring_up() -> (Values, Option<Error>) {
    let esp = match find::mounted() {
        find::Mounted::Yes(partition) => find::esp_beside(&partition),
        find::Mounted::No | find::Mounted::Gone => None,
    };
    all(esp.as_deref(), &Path::new(data::MOUNT).join(KEPT))
}

/// What the folder has, once it has taken what is in the slot of the ESP; also what it could not take.
fn all(esp: Option<&Path>, folder: &Path) -> (Values, Option<Error>) {
    let mut new = Values::new();
    let taken = esp.ok_or(Error::NoEsp).and_then(|esp| take(esp, folder, &mut new));
    let (mut values, unread) = match kept(folder) {
        Ok(values) => (values, None),
        Err(error) => (Values::new(), Some(error)),
    };
    values.extend(new);
    (values, taken.err().or(unread))
}

/// Takes what is in the slot of an ESP into the folder. `new`: what there was, also if it can't be kept.
fn take(esp: &Path, folder: &Path, new: &mut Values) -> Result<(), Error> {
    let failed = |source| Error::Esp { device: esp.to_owned(), source };
    let io = |source| failed(view::ReadError::Io { at: 0, source });
    // One that is write-protected can be read all the same.
    let file = File::options().read(true).write(true).open(esp).or_else(|_| File::open(esp)).map_err(io)?;
    let Some(slot) = secrets::find(&View::whole(&file).map_err(io)?).map_err(failed)? else { return Ok(()) };
    if secrets::is_empty(&slot.array::<HEAD_SIZE>(0).map_err(failed)?) {
        return Ok(());
    }
    match secrets::read(&slot.bytes(SLOT_SIZE).map_err(failed)?) {
        Ok(values) => {
            *new = values;
            store(folder, new)?;
            log::info!("{} new secrets are kept on the data partition", new.len());
        }
        // Its emptying was cut short by a loss of power, or its writing, and then there is nothing to be had.
        Err(error) => log::warn!("the slot for secrets on {} is emptied: {error}", esp.display()),
    }
    secrets::empty(&file, &slot).map_err(|source| Error::Empty { device: esp.to_owned(), source })
}

/// Writes values into the folder.
fn store(folder: &Path, values: &Values) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Keep { path, source }
    };
    for ((guest, name), value) in values {
        let own = folder.join(guest);
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&own).map_err(failed(&own))?;
        let path = own.join(name);
        keep::write(&path, MODE, value.bytes()).map_err(failed(&path))?;
    }
    // What was made on the way to them.
    for made in [folder, folder.parent().unwrap_or(folder)] {
        File::open(made).and_then(|made| made.sync_all()).map_err(failed(made))?;
    }
    Ok(())
}

fn kept(folder: &Path) -> Result<Values, Error> {
    let mut values = Values::new();
    for (guest, own) in list(folder)? {
        for (name, path) in list(&own)? {
            let failed = |source| Error::Read { path: path.clone(), source };
            let mut bytes = Vec::new();
            let file = File::open(&path).map_err(failed)?;
            file.take(VALUE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
            let value =
                Value::new(bytes).ok_or_else(|| failed(io::Error::other("it has a size that no secret has")))?;
            values.insert((guest.clone(), name), value);
        }
    }
    Ok(values)
}

/// What in a folder can be a guest or a secret, by name: not what a cut left half-written.
fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string()
            && is_name(&name)
        {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use rackstick_image::{
        esp::{self, EspFile},
        secrets::SLOT,
        sector::SectorSize,
        source::Source,
    };

    use super::*;

    struct Rack {
        place: tempfile::TempDir,
    }

    impl Rack {
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            let disk = File::create_new(place.path().join("esp")).unwrap();
            disk.set_len(esp::SIZE).unwrap();
            let slot = EspFile { path: SLOT.into(), content: Source::Bytes(vec![0; SLOT_SIZE as usize]).into() };
            esp::write(&disk, SectorSize::B512, 0, 7, &[slot]).unwrap();
            fs::create_dir(place.path().join("state")).unwrap();
            Self { place }
        }

        fn esp(&self) -> PathBuf {
            self.place.path().join("esp")
        }

        fn folder(&self) -> PathBuf {
            self.place.path().join(KEPT)
        }

        /// What is in the slot.
        fn slot(&self) -> Vec<u8> {
            let file = File::open(self.esp()).unwrap();
            let slot = secrets::find(&View::whole(&file).unwrap()).unwrap().unwrap();
            slot.bytes(SLOT_SIZE).unwrap()
        }

        fn fill(&self, bytes: &[u8]) {
            let file = File::options().read(true).write(true).open(self.esp()).unwrap();
            let slot = secrets::find(&View::whole(&file).unwrap()).unwrap().unwrap();
            secrets::put(&file, &slot, bytes).unwrap();
        }

        fn take(&self) -> Values {
            let (values, problem) = all(Some(&self.esp()), &self.folder());
            assert!(problem.is_none(), "{problem:?}");
            values
        }
    }

    fn values(of: &[(&str, &str, &str)]) -> Values {
        let value = |value: &str| Value::new(value.as_bytes().to_vec()).unwrap();
        of.iter().map(|(guest, name, text)| ((guest.to_string(), name.to_string()), value(text))).collect()
    }

    #[test]
    fn what_is_in_the_slot_is_kept_and_the_slot_is_empty_afterwards() {
        let rack = Rack::new();
        assert_eq!(rack.take(), Values::new());
        let first = values(&[("mail", "dkim", "one"), ("web", "tls", "two")]);
        rack.fill(&secrets::fill(&first).unwrap());
        assert_eq!(rack.take(), first);
        assert!(secrets::is_empty(&rack.slot()));
        let mode = |path: &str| fs::metadata(rack.folder().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("mail/dkim"), mode("mail"), mode("")), (0o600, 0o700, 0o700));
        // The next boot.
        assert_eq!(rack.take(), first);
        // New values replace those of the same name; others stay.
        rack.fill(&secrets::fill(&values(&[("mail", "dkim", "three")])).unwrap());
        assert_eq!(rack.take(), values(&[("mail", "dkim", "three"), ("web", "tls", "two")]));
    }

    #[test]
    fn a_cut_while_it_was_kept_or_emptied_loses_nothing() {
        let rack = Rack::new();
        let given = values(&[("mail", "dkim", "one"), ("mail", "tls", "two")]);
        let slot = secrets::fill(&given).unwrap();
        // One is half written beside its place.
        rack.fill(&slot);
        fs::create_dir_all(rack.folder().join("mail")).unwrap();
        fs::write(rack.folder().join("mail/dkim.new"), "on").unwrap();
        assert_eq!(rack.take(), given);
        // All are kept, and the slot is half empty.
        let mut half = slot.clone();
        half[HEAD_SIZE..].fill(0);
        rack.fill(&half);
        assert_eq!(rack.take(), given);
        assert!(secrets::is_empty(&rack.slot()));
    }

    #[test]
    fn where_nothing_can_be_kept_guests_have_what_is_in_the_slot_and_it_stays_there() {
        let rack = Rack::new();
        let given = values(&[("mail", "dkim", "one")]);
        rack.fill(&secrets::fill(&given).unwrap());
        // A file in the folder's place.
        fs::write(rack.folder(), "").unwrap();
        let (found, problem) = all(Some(&rack.esp()), &rack.folder());
        assert_eq!(found, given);
        assert!(problem.is_some_and(|problem| problem.to_string().contains("secrets can't be kept in")));
        assert!(!secrets::is_empty(&rack.slot()));
    }

    #[test]
    fn an_esp_of_another_kind_is_no_obstacle_for_what_is_kept() {
        let rack = Rack::new();
        let given = values(&[("mail", "dkim", "one")]);
        store(&rack.folder(), &given).unwrap();
        File::options().write(true).open(rack.esp()).unwrap().write_all_at(&[0; 512], 0).unwrap();
        let (found, problem) = all(Some(&rack.esp()), &rack.folder());
        assert_eq!(found, given);
        assert!(matches!(problem, Some(Error::Esp { .. })), "{problem:?}");
    }
}

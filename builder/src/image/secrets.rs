//! The secrets that an image holds: in the slot on its ESP those that no rack has taken yet, and on its data partition
//! those that a rack keeps. They are told by their names, and compared, but no value leaves this module: an image may be
//! anybody's, with very many.

use std::collections::{BTreeMap, BTreeSet};

use rackstick_image::{
    digest::Sha256,
    ext4::read::Fs,
    recipe::is_name,
    secrets::{self, KEPT, SLOT, SLOT_SIZE, VALUE_MAX, Value},
};

use super::open::{Fault, Parts};

const GIVE_AGAIN: &str = "give it again with `rackstick secrets`";

/// What values are, by guest and by the secret's name.
pub type Hashes = BTreeMap<(String, String), Sha256>;

/// What there is.
#[derive(Debug, Default)]
pub struct Held {
    /// What no rack has taken yet.
    pub given: Hashes,
    /// What a rack keeps.
    pub kept: Hashes,
    /// What can't be read.
    pub faults: Vec<Fault>,
}

impl Held {
    /// Of an image; without its data partition's file system only what no rack has taken yet.
    pub fn of(parts: &Parts<'_>, fs: Option<&Fs<'_>>) -> Self {
        let mut held = Self::default();
        match given(parts) {
            Ok(values) => held.given = values,
            Err(fault) => held.faults.push(fault),
        }
        if let Some(Err(fault)) = fs.map(|fs| held.keep(fs, parts)) {
            held.faults.push(fault);
        }
        held
    }

    /// What guests get at the next start: what was given takes the place of what is kept.
    pub fn values(self) -> Hashes {
        let mut values = self.kept;
        values.extend(self.given);
        values
    }

    fn keep(&mut self, fs: &Fs<'_>, parts: &Parts<'_>) -> Result<(), Fault> {
        let failed = |error| Fault::read(format!("data partition, {KEPT}"), &parts.data, &error);
        for guest in fs.directories(KEPT).map_err(failed)?.into_iter().filter(|name| is_name(name)) {
            let folder = format!("{KEPT}/{guest}");
            // What a cut left half-written has no such name.
            for name in fs.files(&folder).map_err(failed)?.into_iter().filter(|name| is_name(name)) {
                let path = format!("{folder}/{name}");
                match value(fs, parts, &path) {
                    Ok(value) => drop(self.kept.insert((guest.clone(), name), value)),
                    Err(fault) => self.faults.push(fault.remedy(GIVE_AGAIN)),
                }
            }
        }
        Ok(())
    }
}

/// Names for people, as `guest/secret`.
pub fn names<'v>(secrets: impl IntoIterator<Item = &'v (String, String)>) -> String {
    let names: BTreeSet<String> = secrets.into_iter().map(|(guest, name)| format!("{guest}/{name}")).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn given(parts: &Parts<'_>) -> Result<Hashes, Fault> {
    let failed = |error| Fault::read("ESP", &parts.esp, &error);
    let Some(slot) = secrets::find(&parts.esp).map_err(failed)? else { return Ok(Hashes::new()) };
    let bytes = slot.bytes(SLOT_SIZE).map_err(failed)?;
    let values = secrets::read(&bytes).map_err(|error| {
        let fault = Fault::new(format!("ESP, {SLOT}"), format!("the slot for secrets is damaged: {error}"));
        fault.remedy("the rack will empty it; give them again with `rackstick secrets`")
    })?;
    Ok(values.into_iter().map(|(secret, value)| (secret, Sha256::of(value.bytes()))).collect())
}

fn value(fs: &Fs<'_>, parts: &Parts<'_>, path: &str) -> Result<Sha256, Fault> {
    let part = || format!("data partition, {path}");
    let file = fs.file(path).map_err(|error| Fault::read(part(), &parts.data, &error))?;
    let content = file.ok_or_else(|| Fault::new(part(), "it is not there"))?.content;
    let size = content.length();
    let wrong = || Fault::new(part(), format!("it has {size} bytes, and a secret has 1 to {VALUE_MAX}"));
    if size > VALUE_MAX as u64 {
        return Err(wrong());
    }
    let bytes = content.bytes(VALUE_MAX as u64).map_err(|error| Fault::read(part(), &content, &error))?;
    Value::new(bytes).map(|value| Sha256::of(value.bytes())).ok_or_else(wrong)
}

//! Tidying the cache of layers up: what is no longer needed goes, and so do layers that are not what they were.

use std::path::PathBuf;

use super::{Error, Layers, cache::Slot};

/// How the removal of trees is called where it fails.
const LABEL: &str = "store";
/// How many keys are looked at together: each holds a file open, and a process may have 1024.
const AT_ONCE: usize = 100;

/// How many layers went, or stayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Finished layers.
    pub layers: usize,
    /// What builds that were killed left.
    pub leftovers: usize,
}

impl Layers {
    /// Removes the layers under keys that are not to be kept, given each key and when it was last used (seconds since
    /// 1970), and whatever killed builds left. With `pretend` nothing goes, and what would go is counted. What a
    /// builder works on stays.
    pub fn sweep(&self, keep: impl Fn(&str, i64) -> bool, pretend: bool) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        let keys: Vec<(String, i64)> = self.cache.keys()?.into_iter().collect();
        for keys in keys.chunks(AT_ONCE) {
            let mut slots = Vec::new();
            for (key, used) in keys {
                let Some(slot) = self.cache.free_slot(key)? else { continue };
                let noted = slot.is_noted();
                if (noted || slot.is_remembered()) && keep(key, *used) {
                    continue;
                }
                swept.layers += usize::from(noted);
                swept.leftovers += usize::from(!noted && slot.is_more_than_a_lock());
                slots.push(slot);
            }
            if !pretend {
                self.discard(slots)?;
            }
        }
        Ok(swept)
    }

    /// Hashes every layer anew and removes those that are damaged. Says how many there were, where those were that went,
    /// and which can't be read or removed and were left. The tree of a base is not hashed: nothing says what it was. It
    /// goes with its layer.
    pub fn verify(&self) -> (usize, Vec<Result<PathBuf, Error>>) {
        let keys = match self.cache.keys() {
            Ok(keys) => keys,
            Err(error) => return (0, vec![Err(error)]),
        };
        let (mut count, mut wrong) = (0, Vec::new());
        for key in keys.into_keys() {
            let mut judge = || {
                let Some(slot) = self.cache.free_slot(&key)?.filter(Slot::is_noted) else { return Ok(None) };
                count += 1;
                if slot.has_its_digest()? {
                    return Ok(None);
                }
                let layer = slot.layer();
                self.discard(vec![slot])?;
                Ok(Some(layer))
            };
            wrong.extend(judge().transpose());
        }
        (count, wrong)
    }

    /// Removes all that lies under these keys. Cut off at any moment, it leaves no layer that is not whole.
    fn discard(&self, slots: Vec<Slot>) -> Result<(), Error> {
        slots.iter().try_for_each(Slot::begin)?;
        let trees: Vec<PathBuf> = slots.iter().flat_map(Slot::leftovers).collect();
        self.remove(LABEL, &trees)?;
        slots.into_iter().try_for_each(Slot::discard)
    }
}

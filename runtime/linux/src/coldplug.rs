//! Coldplug: loads the drivers of all devices that were there before anybody listened to uevents.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::modules::{LoadError, Loader};

/// How often new devices may turn up behind the drivers just loaded (a disk behind a controller behind a bridge).
/// What comes later comes as a uevent.
const MAX_ROUNDS: u32 = 8;
/// Directories deeper than this are not entered: sysfs has some 20 levels at most.
const MAX_DEPTH: u32 = 64;

/// What a coldplug did.
#[derive(Debug, Default)]
pub struct Report {
    /// How many different modaliases there were.
    pub devices: usize,
    /// What could not be loaded although there is a driver; devices that a driver does not want are not counted.
    pub failures: Vec<LoadError>,
}

/// Loads the drivers of all devices under `/sys/devices`, with `threads` threads (at least 1), round after round until
/// no new device turns up. Open a [`crate::uevent::Uevents`] first: what comes during or after is seen there.
///
/// # Errors
/// If `/sys/devices` can't be read. What single modules fail with stands in the report.
pub fn coldplug(loader: &Loader, threads: usize) -> io::Result<Report> {
    let mut report = Report::default();
    let mut done = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        let new: Vec<String> = modaliases()?.difference(&done).cloned().collect();
        if new.is_empty() {
            break;
        }
        report.failures.append(&mut load_all(loader, &new, threads));
        done.extend(new);
    }
    report.devices = done.len();
    Ok(report)
}

fn load_all(loader: &Loader, modaliases: &[String], threads: usize) -> Vec<LoadError> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, modaliases.len()) {
            scope.spawn(|| {
                while let Some(modalias) = modaliases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match loader.load_modalias(modalias) {
                        Ok(()) => {}
                        Err(error) if error.is_no_device() => log::debug!("{modalias}: {error}"),
                        Err(error) => failures.lock().unwrap_or_else(PoisonError::into_inner).push(error),
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The modaliases of all devices that are there now.
///
/// # Errors
/// If `/sys/devices` can't be read.
pub fn modaliases() -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/devices"), 0, &mut found)?;
    Ok(found)
}

/// All modaliases below `directory`. Devices vanish while we walk: what can't be read is passed over, except the start.
fn walk(directory: &Path, depth: u32, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            // Only the start must be there.
            let _ = walk(&entry.path(), depth + 1, found);
        } else if kind.is_file()
            && entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            let text = text.trim();
            if !text.is_empty() {
                found.insert(text.to_owned());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_s_devices_are_found_with_its_processor() {
        let found = modaliases().unwrap();
        assert!(found.iter().any(|alias| alias.starts_with("cpu:type:x86,")), "{found:?}");
        assert!(found.iter().any(|alias| alias.starts_with("platform:")), "{found:?}");
    }
}

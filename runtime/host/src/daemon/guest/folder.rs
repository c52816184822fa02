//! A guest's folder under `/run`. It belongs to root; where the monitor writes, and where its messages go, are small
//! file systems of their own, so that no monitor can fill the host's memory, and messages can't keep the reason of
//! the end from being written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rackstick_api::guest::{CANT_START, COMMAND_ENDED};
use rackstick_linux::mount::{self, MountError, MountFlags};
use rackstick_vmm::exit::Exit;
use rustix::fs::OFlags;

use super::{config, process::GROUP};

const FOLDER: &str = "/run/rackstick/guests";
/// Room for the console's files and the reason of the end.
const WRITABLE_SIZE: &str = "1m";
const LOG_FOLDER: &str = "log";
const LOG_SIZE: &str = "128k";
const LOG: &str = "log/vmm.log";
const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
/// The most that is read of the file with the reason of the end.
const LONGEST_EXIT: u64 = 16 << 10;
/// Where a guest's reason for not starting, or for its end, is looked for: its last words, and what the kernel says of
/// the reset behind them.
const LONGEST_END: u64 = 4 << 10;

/// Where a guest's folder is.
pub fn path(guest: &str) -> PathBuf {
    Path::new(FOLDER).join(guest)
}

/// Makes the folder for this guest's monitor, or cleans the one that is there.
pub fn prepare(guest: &str, uid: u32) -> Result<PathBuf, MountError> {
    let folder = path(guest);
    let parts = [(config::WRITABLE, WRITABLE_SIZE, uid, GROUP), (LOG_FOLDER, LOG_SIZE, 0, 0)];
    for (name, size, uid, gid) in parts {
        let part = folder.join(name);
        if !mount::is_mount_point(&part) {
            let options = format!("size={size},nr_inodes=32,mode=0700,uid={uid},gid={gid}");
            mount::mount("tmpfs", "guest", &part, FLAGS, &options)?;
        }
    }
    for name in [config::EXIT, LOG] {
        // Not there the first time.
        let _ = fs::remove_file(folder.join(name));
    }
    Ok(folder)
}

/// Begins the monitor's log.
pub fn log(folder: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).open(folder.join(LOG))
}

/// Why the monitor ended, as it says itself; an error if it could not say.
pub fn exit(guest: &str) -> io::Result<Exit> {
    Ok(serde_json::from_slice(&tail(&path(guest).join(config::EXIT), LONGEST_EXIT)?)?)
}

/// The monitor's last message; empty if it had none.
pub fn last_message(guest: &str) -> String {
    let text = tail(&path(guest).join(LOG), 4096).unwrap_or_default();
    String::from_utf8_lossy(&text).trim_end().lines().next_back().unwrap_or_default().to_owned()
}

/// The last bytes of the guest's console, at most about `most`.
pub fn console(guest: &str, most: u64) -> io::Result<Vec<u8>> {
    let current = path(guest).join(config::CONSOLE);
    let mut text = tail(&current, most)?;
    let missing = most.saturating_sub(text.len() as u64);
    // The older file is there only once the newer was full.
    if let Ok(mut older) = tail(&current.with_extension("log.1"), missing) {
        older.append(&mut text);
        text = older;
    }
    Ok(text)
}

/// Why the guest's own init could not start it, if that is the last of its console.
pub fn cant_start(guest: &str) -> Option<String> {
    said_last(guest, CANT_START)
}

/// How the command ended that the guest's own init ran, if that is among the last of its console.
pub fn command_ended(guest: &str) -> Option<String> {
    said_last(guest, COMMAND_ENDED)
}

fn said_last(guest: &str, begin: &str) -> Option<String> {
    let text = console(guest, LONGEST_END).ok()?;
    said_last_in(&String::from_utf8_lossy(&text), begin)
}

fn said_last_in(console: &str, begin: &str) -> Option<String> {
    let (_, what) = console.rsplit_once(begin)?;
    what.lines().next().map(str::to_owned)
}

/// The end of a file that belongs to the monitor: links are not followed, it might point them at anything.
fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_can_not_start_says_why_on_its_console() {
        let console = "[1.0] rackstick-guest: the guest can't start: old\n[2.0] x\r\n\
                       [3.0] rackstick-guest: the guest can't start: volume `zones` can't be used\r\n\
                       [3.1] rackstick-guest: resetting this guest's machine\n[3.2] reboot: Restarting system\n";
        assert_eq!(said_last_in(console, CANT_START).as_deref(), Some("volume `zones` can't be used"));
        assert_eq!(said_last_in("[3.2] reboot: Restarting system\n", CANT_START), None);
        assert_eq!(said_last_in(CANT_START, CANT_START), None);
    }
}

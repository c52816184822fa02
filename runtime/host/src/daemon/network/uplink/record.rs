//! What a restarted daemon must know of a lease, so that it goes on with it. Kept in memory only: after a boot the rack
//! may be in another network.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rackstick_linux::{dhcp::Lease, netlink::Mac};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Record {
    /// The card that it is for.
    mac: String,
    lease: Lease,
    /// When it ends, in seconds since boot.
    expires_s: u64,
}

/// Remembers a lease; a daemon killed meanwhile leaves the old or the new.
pub fn save(folder: &Path, network: &str, mac: Mac, lease: &Lease, expires: Instant) -> io::Result<()> {
    let left = expires.saturating_duration_since(Instant::now());
    let record = Record { mac: mac.to_string(), lease: lease.clone(), expires_s: uptime_s() + left.as_secs() };
    let path = path(folder, network);
    let new = path.with_extension("new");
    fs::create_dir_all(folder)?;
    fs::write(&new, serde_json::to_vec(&record)?)?;
    fs::rename(&new, &path)
}

/// The lease that this card has still, and until when.
pub fn load(folder: &Path, network: &str, mac: Mac) -> Option<(Lease, Instant)> {
    let text = fs::read(path(folder, network)).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    let left = record.expires_s.checked_sub(uptime_s()).filter(|left| *left > 0)?;
    (record.mac == mac.to_string()).then(|| (record.lease, Instant::now() + Duration::from_secs(left)))
}

/// The lease is lost.
pub fn forget(folder: &Path, network: &str) {
    match fs::remove_file(path(folder, network)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("uplink {network}: its old lease can't be forgotten: {error}");
        }
        _ => {}
    }
}

fn path(folder: &Path, network: &str) -> PathBuf {
    folder.join(format!("{network}.json"))
}

fn uptime_s() -> u64 {
    clock_gettime(ClockId::Boottime).tv_sec.try_into().unwrap_or(0)
}

//! What a program takes of memory together with all that it starts: the sum of their proportional shares (PSS in
//! smaps_rollup, proc(5)), so that what several map counts once. The kernel's page cache is not in it.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, ExitStatus},
    thread,
    time::Duration,
};

/// How often it is looked at. What is taken for a shorter time may be missed.
const PERIOD: Duration = Duration::from_millis(20);

/// Waits for a program's end; also says how many MiB it and all processes below it took when they took most.
pub fn peak_mib(child: &mut Child) -> (ExitStatus, f64) {
    let mut peak = 0;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return (status, peak as f64 / 1024.0);
        }
        peak = peak.max(family(child.id()).into_iter().map(pss_kib).sum());
        thread::sleep(PERIOD);
    }
}

/// A process and all below it.
fn family(first: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("proc is mounted") {
        let name = entry.expect("proc can be read").file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = parent(id) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut family = vec![first];
    let mut at = 0;
    while let Some(id) = family.get(at) {
        family.extend(children.remove(id).unwrap_or_default());
        at += 1;
    }
    family
}

/// None if the process has ended meanwhile.
fn parent(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it may hold anything.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(1)?.parse().ok()
}

/// 0 if the process has ended meanwhile.
fn pss_kib(id: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_grandchild_takes_counts() {
        // 64 MiB as one line, held by a shell below a shell for as long as it is looked at.
        let script = "sh -c 'held=$(yes | head -c 67108864); sleep 1; : ${#held}'; true";
        let (status, peak) = peak_mib(&mut Command::new("sh").args(["-c", script]).spawn().unwrap());
        assert!(status.success() && (64.0..512.0).contains(&peak), "{peak} MiB");
    }
}

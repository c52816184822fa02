//! What the host itself uses of the machine's memory: MemTotal - MemFree - clean page cache, of `/proc/meminfo`
//! (Linux, Documentation/filesystems/proc.rst), less the same of the guests' cgroup (admin-guide/cgroup-v2.rst). Free
//! pages that a CPU keeps at hand are not in MemFree, but in `/proc/zoneinfo` (mm/vmstat.c): they are free all the
//! same.

use std::{fs, io};

use super::guest::cgroup;

/// Size of a page on x86-64.
const PAGE_KIB: u64 = 4;

/// The host's memory in KiB, now.
pub fn host_kib() -> io::Result<u64> {
    let lacks = |file: &str| io::Error::other(format!("{file} lacks a line it always had"));
    let guests = match cgroup::guests_memory() {
        Ok((current, stat)) => used_by_guests(&current, &stat).ok_or_else(|| lacks("memory.stat"))?,
        // No guest was started yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let all = used(&fs::read_to_string("/proc/meminfo")?).ok_or_else(|| lacks("/proc/meminfo"))?;
    let at_hand = pages_at_hand(&fs::read_to_string("/proc/zoneinfo")?) * PAGE_KIB;
    Ok(all.saturating_sub(guests).saturating_sub(at_hand))
}

/// `memory.current` and `memory.stat` are in bytes. Pages of layers are clean page cache, whoever is charged for them.
fn used_by_guests(current: &str, stat: &str) -> Option<u64> {
    let field = |name: &str| {
        stat.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|rest| rest.parse::<u64>().ok())
    };
    let clean = field("file")?.saturating_sub(field("shmem")?.checked_add(field("file_dirty")?)?);
    Some(current.trim().parse::<u64>().ok()?.saturating_sub(clean) >> 10)
}

/// Free pages that CPUs keep at hand, of all zones.
fn pages_at_hand(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| line.trim_start().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// The machine's memory in MiB, less what the kernel took for itself before it counted.
pub fn total_mib() -> io::Result<u64> {
    let total = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal").map(|kib| kib >> 10);
    total.ok_or_else(|| io::Error::other("/proc/meminfo lacks MemTotal"))
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn used(meminfo: &str) -> Option<u64> {
    let field = |name| field(meminfo, name);
    // Shared memory (tmpfs, with the unpacked initrd) counts as cached but can't be dropped; dirty pages not yet.
    let cached = field("Cached")?.checked_add(field("Buffers")?)?;
    let clean = cached.saturating_sub(field("Shmem")?.checked_add(field("Dirty")?)?);
    field("MemTotal")?.checked_sub(field("MemFree")?)?.checked_sub(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_page_cache_does_not_count_but_tmpfs_does() {
        let meminfo =
            "MemTotal: 1000 kB\nMemFree: 400 kB\nBuffers: 10 kB\nCached: 200 kB\nDirty: 5 kB\nShmem: 105 kB\n";
        assert_eq!(used(meminfo), Some(1000 - 400 - 100));
        assert_eq!(used("MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn pages_that_a_cpu_keeps_at_hand_are_free() {
        let zone = "Node 0, zone    DMA32\n  pages free     1\n  pagesets\n    cpu: 0\n              count:    120\n              \
                    high:     500\n    cpu: 1\n              count:    7\n              high:     500\n";
        assert_eq!((pages_at_hand(zone), pages_at_hand(&zone.repeat(2)), pages_at_hand("")), (127, 254, 0));
    }

    #[test]
    fn of_the_guests_memory_their_layers_are_not_the_guests_own() {
        let stat = "anon 50000000\nfile 30000000\nkernel 1000000\nshmem 8000000\nfile_mapped 1\nfile_dirty 2000000\n";
        assert_eq!(used_by_guests("81000000\n", stat), Some((81_000_000 - 20_000_000) >> 10));
        assert_eq!(used_by_guests("81000000\n", "anon 1\n"), None);
    }
}

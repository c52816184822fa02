//! What the host itself uses of the machine's memory: MemTotal - MemFree - clean page cache, of `/proc/meminfo`
//! (Linux, Documentation/filesystems/proc.rst).

use std::{fs, io};

/// The host's memory in KiB, now.
pub fn used_kib() -> io::Result<u64> {
    used(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::other("/proc/meminfo lacks a line it always had"))
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
        assert!(used_kib().unwrap() > 0 && total_mib().unwrap() > 0);
    }
}

//! What runs where a recipe asks for more than the machine has. The rule:
//!
//! - The host keeps [`HOST_MIB`] of the machine's memory to itself.
//! - Guests are looked at in the order in which they start. One has room if its memory and [`MONITOR_MIB`] for its monitor still fit
//!   beside those before it that have room. One that has none waits, and smaller ones behind it may still have room.
//! - A guest that starts after one without room would wait for ever: it has no room either and takes none.
//! - A guest gets no more vCPUs than the machine has CPUs.
//!
//! It is decided once, by the machine and the manifest alone, so that the same machine always runs the same guests.

use std::collections::BTreeSet;

use rackstick_image::manifest::Guest;

/// Memory that the host keeps: what it needs itself before any guest, and for page cache and sockets beside them.
pub const HOST_MIB: u64 = 128;
/// What a guest's monitor needs beside its guest's memory: itself, page tables, queues.
pub const MONITOR_MIB: u64 = 16;

/// What a machine has.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Memory in MiB, less what the kernel took before it counted.
    pub memory_mib: u64,
    /// CPUs.
    pub cpus: usize,
}

/// What is given to the guests of a rack.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By index of the guest: why it can't run.
    pub refused: Vec<Option<String>>,
    /// By index: its vCPUs.
    pub vcpus: Vec<u8>,
    /// What a user must be told of memory.
    pub memory: Option<String>,
    /// What a user must be told of CPUs.
    pub cpus: Option<String>,
}

/// Decides what runs.
pub fn plan(machine: Machine, guests: &[Guest]) -> Plan {
    let mut left = machine.memory_mib.saturating_sub(HOST_MIB);
    let mut plan = Plan::default();
    let mut without: BTreeSet<&str> = BTreeSet::new();
    let (mut waiting, mut capped) = (Vec::new(), Vec::new());
    for guest in guests {
        let needed = u64::from(guest.memory_mib) + MONITOR_MIB;
        let refused = if let Some(other) = guest.after.iter().find(|name| without.contains(name.as_str())) {
            waiting.push(format!("{} (after {other})", guest.name));
            Some(format!("starts after {other}, for which there is no memory"))
        } else if needed > left {
            waiting.push(format!("{} ({} MiB)", guest.name, guest.memory_mib));
            Some(format!(
                "not enough memory: it needs {} MiB and {MONITOR_MIB} for its monitor, {left} are left beside the guests before it; \
                 give it less in the recipe or the machine more",
                guest.memory_mib
            ))
        } else {
            left -= needed;
            None
        };
        if refused.is_some() {
            without.insert(&guest.name);
        }
        plan.refused.push(refused);
        let vcpus = u8::try_from(machine.cpus).unwrap_or(u8::MAX).max(1).min(guest.vcpus);
        if vcpus < guest.vcpus {
            capped.push(format!("{} ({} vCPUs)", guest.name, guest.vcpus));
        }
        plan.vcpus.push(vcpus);
    }
    plan.memory = (!waiting.is_empty()).then(|| {
        format!(
            "not enough memory: the machine has {} MiB, of which the host keeps {HOST_MIB}; these guests can't run: {}",
            machine.memory_mib,
            waiting.join(", ")
        )
    });
    plan.cpus = (!capped.is_empty()).then(|| {
        format!(
            "the machine has {} CPUs; these guests get no more vCPUs than that: {}",
            machine.cpus,
            capped.join(", ")
        )
    });
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::network::firewall::tests as sample;

    fn guest(name: &str, memory_mib: u32, vcpus: u8, after: &[&str]) -> Guest {
        let after = after.iter().map(|name| (*name).to_owned()).collect();
        Guest { name: name.into(), memory_mib, vcpus, after, ..sample::manifest().guests.remove(0) }
    }

    fn running(memory_mib: u64, guests: &[Guest]) -> Vec<String> {
        let plan = plan(Machine { memory_mib, cpus: 2 }, guests);
        let runs = guests.iter().zip(&plan.refused).filter(|(_, refused)| refused.is_none());
        runs.map(|(guest, _)| guest.name.clone()).collect()
    }

    #[test]
    fn guests_that_fit_run_in_their_order_and_a_smaller_one_takes_the_place_of_one_too_big() {
        let guests = [guest("dns", 192, 1, &[]), guest("files", 2048, 1, &[]), guest("web", 256, 1, &[])];
        assert_eq!(running(4096, &guests), ["dns", "files", "web"]);
        assert_eq!(running(1024, &guests), ["dns", "web"]);
        assert_eq!(running(512, &guests), ["dns"]);
        // To the MiB: the host, dns and its monitor.
        assert_eq!(running(128 + 192 + 16, &guests), ["dns"]);
        assert_eq!(running(128 + 192 + 15, &guests), [""; 0]);
        assert_eq!(running(0, &guests), [""; 0]);
    }

    #[test]
    fn a_guest_behind_one_without_room_has_none_and_takes_none() {
        let guests = [
            guest("files", 2048, 1, &[]),
            guest("index", 300, 1, &["files"]),
            guest("search", 64, 1, &["index"]),
            guest("web", 256, 1, &[]),
        ];
        assert_eq!(running(512, &guests), ["web"]);
        let plan = plan(Machine { memory_mib: 512, cpus: 2 }, &guests);
        let said = plan.refused[2].as_deref().unwrap();
        assert!(said.contains("starts after index"), "{said}");
        let problem = plan.memory.unwrap();
        for part in ["512 MiB", "files (2048 MiB)", "index (after files)", "search (after index)"] {
            assert!(problem.contains(part), "{problem}");
        }
        assert!(!problem.contains("web"), "{problem}");
    }

    #[test]
    fn vcpus_are_capped_at_the_machines_cpus_and_reported() {
        let guests = [guest("dns", 64, 1, &[]), guest("build", 64, 8, &[])];
        let capped = plan(Machine { memory_mib: 1024, cpus: 4 }, &guests);
        assert_eq!((capped.vcpus, capped.memory), (vec![1, 4], None));
        let said = capped.cpus.unwrap();
        assert!(said.contains("has 4 CPUs") && said.contains("build (8 vCPUs)") && !said.contains("dns"), "{said}");
        assert_eq!(plan(Machine { memory_mib: 1024, cpus: 64 }, &guests).cpus, None);
        assert_eq!(plan(Machine { memory_mib: 1024, cpus: 1000 }, &guests).vcpus, [1, 8]);
    }
}

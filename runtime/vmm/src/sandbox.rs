//! The seccomp filter (seccomp(2)) that all threads get before the first vCPU runs: a guest that takes this process
//! over finds only the system calls that serving a guest needs. It can start no program, open no socket, see no
//! other process, and make no memory executable. What is not on the list kills the process.
//!
//! The list holds what strace shows under a bare-metal guest of this crate's tests, what a whole Linux guest that uses
//! all devices was found to need, and what the C library and Rust call only now and then (memory, locks, panics).

use libc::{c_long, c_ulong};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use vhost::vhost_kern::vhost_binding as vhost;

/// System calls with any arguments.
const ALLOWED: &[c_long] = &[
    // Devices: eventfds, disks, taps, console, randomness.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pread64,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_getrandom,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    // The console's next file and the exit file.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fcntl,
    libc::SYS_fsync,
    libc::SYS_rename,
    // Memory and locks.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    // What a thread does when it starts and ends, and how the process ends.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_restart_syscall,
    libc::SYS_prctl,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// ioctls of KVM while a guest runs (linux/kvm.h).
const KVM_RUN: c_ulong = 0xAE80;
const KVM_GET_REGS: c_ulong = 0x8090_AE81;
const KVM_SET_GSI_ROUTING: c_ulong = 0x4008_AE6A;
const KVM_IRQFD: c_ulong = 0x4020_AE76;
const KVM_IOEVENTFD: c_ulong = 0x4040_AE79;
/// ioctl of a tap (linux/if_tun.h).
const TUNSETOFFLOAD: c_ulong = 0x4004_54D0;

/// The filter can't be built or is not accepted.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the seccomp filter: {0}")]
pub struct SandboxError(String);

/// Confines all threads of this process from now on.
pub fn confine() -> Result<(), SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError(error.to_string());
    let program = filter().map_err(|error| failed(&error))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let is = |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    let ioctls = [KVM_RUN, KVM_GET_REGS, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, TUNSETOFFLOAD]
        .into_iter()
        .chain([
            vhost::VHOST_SET_FEATURES(),
            vhost::VHOST_SET_VRING_NUM(),
            vhost::VHOST_SET_VRING_BASE(),
            vhost::VHOST_SET_VRING_ADDR(),
            vhost::VHOST_SET_VRING_CALL(),
            vhost::VHOST_SET_VRING_KICK(),
            vhost::VHOST_VSOCK_SET_RUNNING(),
        ])
        .map(|number| SeccompRule::new(vec![is(1, number)?]))
        .collect::<Result<Vec<_>, _>>()?;
    let without_exec = || {
        let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        SeccompRule::new(vec![SeccompCondition::new(2, SeccompCmpArgLen::Dword, no_exec, 0)?])
    };
    let mut rules: std::collections::BTreeMap<_, _> = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, ioctls);
    rules.insert(libc::SYS_mmap, vec![without_exec()?]);
    rules.insert(libc::SYS_mprotect, vec![without_exec()?]);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_numbers_are_the_kernels() {
        // _IOC(direction, type, number, size) of asm-generic/ioctl.h.
        let number = |direction: u64, kind: u64, number: u64, size: usize| {
            direction << 30 | (size as u64) << 16 | kind << 8 | number
        };
        let kvm = |direction, nr, size| number(direction, 0xAE, nr, size);
        assert_eq!(KVM_RUN, kvm(0, 0x80, 0));
        assert_eq!(KVM_GET_REGS, kvm(2, 0x81, size_of::<kvm_bindings::kvm_regs>()));
        assert_eq!(KVM_SET_GSI_ROUTING, kvm(1, 0x6A, size_of::<kvm_bindings::kvm_irq_routing>()));
        assert_eq!(KVM_IRQFD, kvm(1, 0x76, size_of::<kvm_bindings::kvm_irqfd>()));
        assert_eq!(KVM_IOEVENTFD, kvm(1, 0x79, size_of::<kvm_bindings::kvm_ioeventfd>()));
        assert_eq!(TUNSETOFFLOAD, number(1, b'T'.into(), 208, size_of::<u32>()));
    }

    #[test]
    fn the_filter_compiles() {
        assert!(filter().unwrap().len() > ALLOWED.len());
    }
}

//! Signals that are waited for instead of handled: blocked in every thread, taken by `sigtimedwait(2)`.

use std::{mem::MaybeUninit, time::Duration};

use libc::c_int;

/// A set of signals.
#[derive(Clone, Copy)]
pub struct Set(libc::sigset_t);

impl Set {
    /// The set of these signals; numbers that are no signals are left out.
    pub fn of(signals: &[c_int]) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set it is given, sigaddset changes an initialized one.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            Self(set.assume_init())
        }
    }

    /// Blocks exactly these signals in the calling thread and in those it starts from now on. Also allowed between
    /// fork and exec: it is one system call.
    pub fn block_only(&self) {
        // SAFETY: the set is initialized, the old one is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }

    /// Waits until one of these signals is pending, takes it and returns its number; none if `patience` ended
    /// before, or if the wait was interrupted.
    pub fn wait(&self, patience: Option<Duration>) -> Option<c_int> {
        let timeout = patience.map(|patience| libc::timespec {
            tv_sec: patience.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is initialized, no details are asked for, and the time outlives the call.
        let signal = unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), timeout) };
        (signal > 0).then_some(signal)
    }
}

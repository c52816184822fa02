//! Threads that give way to others of the same program, where CPUs are few: those that do not decide when all is done.
//! sched(7), "The nice value".

/// How much nicer a thread is that gives way: where it shares a CPU with another, it gets a fifth of it.
const NICER: i32 = 6;
/// As nice as a thread can be.
const NICEST: i32 = 19;

/// Lets this thread, and what it starts from now on, give way. There is no way back.
pub fn give_way() {
    let nice = rustix::process::getpriority_process(None);
    // Without it all takes longer, and that is all.
    _ = nice.and_then(|nice| rustix::process::setpriority_process(None, (nice + NICER).min(NICEST)));
}

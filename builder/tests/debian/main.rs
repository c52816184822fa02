//! Debian's own tools as oracles: apt of what a lock holds, mmdebstrap, dpkg and apt of what layers hold. Needs the
//! network: all read the archive as it is now, from this machine's mirrors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../apt/mod.rs"]
mod apt;
mod archive;
mod closure;
mod lock;
mod random;
mod scripts;

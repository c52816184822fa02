//! Apt as the oracle of what a lock holds. Needs the network: both read the archive as it is now, from this machine's mirrors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../apt/mod.rs"]
mod apt;
mod archive;
mod closure;
mod lock;
mod random;

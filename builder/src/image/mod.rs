//! A finished image, looked into: rootless, without mounting, and as if anybody had written it. What is read of it goes
//! through the bounded readers of `rackstick-image`.

pub mod describe;
pub mod diff;
mod open;
mod packages;
mod secrets;
#[cfg(test)]
mod tests;
mod text;
pub mod verify;

pub use open::{Disk, Host, ImageError, Opened, Parts, only_host};

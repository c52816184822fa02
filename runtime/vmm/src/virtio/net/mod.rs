//! Network device (5.1) on a tap, served by a thread of its own.

mod device;
mod mac;
mod tap;

pub use device::Net;
pub use mac::{BadMac, Mac};
pub use tap::{Tap, TapError};

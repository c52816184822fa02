//! Block device (5.2) on a raw file or block device, served synchronously by a thread of its own.

mod device;
mod disk;
mod request;

pub use device::Blk;
pub use disk::{Disk, DiskError};
pub use request::ID_LENGTH;

//! From an image to a disk that boots: which disks there are, which of them may be overwritten, and the writing.

mod buffer;
mod disks;
mod refuse;
mod source;
mod users;
mod write;

pub use disks::{Disk, System};
pub use refuse::{Refusal, refusal};
pub use source::Image;
pub use write::{Target, flash, give};

#[cfg(test)]
mod tests;

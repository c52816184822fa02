//! Images that are not made of packages: tarballs of root file systems and OCI images become one layer. What stands in
//! them is not unpacked onto the disk: their entries become a tree in memory whose files are pieces of the plain
//! archive, so that owners, devices and attributes need neither root nor namespaces, and nothing can be written outside
//! of it. Whole disks become no layer, but a packed file.

mod build;
pub mod disk;
mod notes;
pub mod oci;
mod pin;
mod process;
mod spool;
mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod users;

pub use build::{Built, FromError, Keys, build, unchanged};
pub use pin::{PinError, Pinned, differences, made_from, pin};
pub use process::Start;

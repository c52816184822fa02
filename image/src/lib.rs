//! Every format that builder and rack must agree on, written and read.
//!
//! No network, no processes, no clock, no randomness: the same input gives the same bytes.

#![forbid(unsafe_code)]

pub mod cpio;
pub mod digest;
pub mod disk;
pub mod erofs;
pub mod esp;
pub mod ext4;
pub mod full;
pub mod gpt;
pub mod guid;
mod holes;
pub mod lock;
pub mod manifest;
pub mod modules;
pub mod nice;
pub mod packed;
pub mod pieces;
pub mod recipe;
pub mod reference;
pub mod secrets;
pub mod sector;
pub mod source;
pub mod spares;
pub mod uki;
pub mod used;
pub mod verity;
pub mod view;
pub mod volume;

#[cfg(test)]
mod testing;

//! The rig: builds images, boots whole racks under QEMU through `rackstick run`, and waits for what must come true.
//!
//! It drives binaries and the API from outside and judges with other people's tools. What goes wrong in it is a failed
//! test, so it panics; a rack that is dropped by a panic leaves its logs in `<target>/rig/<test>/`.

// A panic is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![forbid(unsafe_code)]

pub mod bench;
pub mod client;
pub mod disk;
pub mod image;
pub mod machine;
pub mod memory;
pub mod place;
pub mod qmp;
pub mod rack;
pub mod recipe;
pub mod screen;
pub mod tool;
pub mod wait;

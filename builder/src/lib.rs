//! What of the command `rackstick` is tested from outside: the layers, whose work happens in processes that start the
//! command again, and what they are made from beside packages.

pub mod from;
pub mod hashed;
pub mod layers;
pub mod locked;
pub mod packing;
pub mod stamp;

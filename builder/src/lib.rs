//! What of the command `rackstick` is tested from outside: the layers, whose work happens in processes that start the
//! command again.

pub mod layers;
pub mod locked;

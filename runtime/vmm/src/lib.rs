//! One virtual machine: KVM and virtio. Knows nothing of racks.

pub mod config;
pub mod exit;

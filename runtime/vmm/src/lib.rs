//! One virtual machine: KVM and virtio. Knows nothing of racks.
//!
//! [`machine::run`] takes a [`config::Config`] and returns an [`exit::Exit`]; the binary around it reads the one and
//! writes the other. Threads: one for each vCPU, one for each disk and network interface, and the main thread for
//! the other devices.

pub mod config;
pub mod exit;
pub mod logger;
pub mod machine;

mod acpi;
mod boot;
mod cpuid;
mod ending;
mod event_loop;
mod ioapic;
mod irq;
mod layout;
mod memory;
mod pci;
mod platform;
mod sandbox;
mod sync;
mod vcpu;
mod virtio;

//! ACPI: the tables a kernel finds the machine by (ACPI 6.3), and the registers of sleep and reset.

mod dsdt;
pub mod power;
mod tables;

pub use tables::{AcpiError, write_tables};

//! Console device (5.3), one port without multiport: the guest's `hvc0`.

mod device;
mod output;

pub use device::Console;
pub use output::Output;

//! The sleep control, sleep status and reset registers (ACPI 6.3, 4.8.3.6 and 4.8.3.7), each one I/O port wide.

use crate::{exit::Exit, layout};

/// SLP_TYP of S5, as the DSDT's `_S5_` says.
pub const S5_TYPE: u8 = 5;
/// What the FADT tells a kernel to write to the reset register.
pub const RESET_VALUE: u8 = 1;

/// SLP_EN in the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_TYPx: bits 2 to 4.
const SLEEP_TYPE_SHIFT: u8 = 2;

/// Why the machine ends if `value` is written to `port`; none if it goes on.
pub fn write(port: u16, value: u8) -> Option<Exit> {
    match port {
        layout::SLEEP_CONTROL_PORT if value == SLEEP_ENABLE | S5_TYPE << SLEEP_TYPE_SHIFT => Some(Exit::PoweredOff),
        layout::RESET_PORT if value == RESET_VALUE => Some(Exit::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_values_end_the_machine() {
        for value in 0..=255 {
            let slept = write(layout::SLEEP_CONTROL_PORT, value);
            assert_eq!(slept, (value == 0x34).then_some(Exit::PoweredOff), "{value:#x}");
            let reset = write(layout::RESET_PORT, value);
            assert_eq!(reset, (value == 1).then_some(Exit::Reset), "{value:#x}");
            assert_eq!(write(layout::SLEEP_STATUS_PORT, value), None);
        }
    }
}

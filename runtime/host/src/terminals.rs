//! The consoles that take plain lines: all of the kernel's but the screen, which has its own way of showing things.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// Opens the terminals behind `/dev/console` that are no virtual terminals; the kernel lists all, `/dev/console` itself
/// is only the last. With `flags` beside those that every terminal needs.
pub fn serial(flags: OFlags) -> Vec<File> {
    let names = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    // A terminal that is listed but can't be opened (a serial port without hardware) is no loss.
    let named = |name: &str| {
        OpenOptions::new()
            .write(true)
            .custom_flags((OFlags::NOCTTY | flags).bits().cast_signed())
            .open(Path::new("/dev").join(name))
    };
    names.split_whitespace().filter(|name| !is_virtual(name)).filter_map(|name| named(name).ok()).collect()
}

/// Whether this is `tty0`, `tty1`...: the screen.
fn is_virtual(name: &str) -> bool {
    name.strip_prefix("tty").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_takes_no_plain_lines_and_serial_ports_do() {
        assert_eq!(["tty0", "tty63", "ttyS0", "ttyAMA0", "hvc0"].map(is_virtual), [true, true, false, false, false]);
    }
}

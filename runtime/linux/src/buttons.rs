//! The machine's power buttons, as input devices (Linux, include/uapi/linux/input.h): the ACPI button, or a keyboard's
//! power key.

use std::{
    collections::HashSet,
    fs,
    fs::File,
    io::{self, Read},
    path::Path,
    thread,
};

const INPUTS: &str = "/sys/class/input";
const EV_KEY: u16 = 1;
const KEY_POWER: usize = 116;
const PRESSED: i32 = 1;
/// `struct input_event` on 64-bit machines: time (16 bytes), type, code, value.
const EVENT_SIZE: usize = 24;

/// The buttons that are listened to.
#[derive(Default)]
pub struct Buttons {
    known: HashSet<String>,
}

impl Buttons {
    /// Listens to every power button that is there and was not before; `pressed` is called at each press.
    ///
    /// # Errors
    /// What the kernel says where a button that is there can't be listened to. No input device at all is none.
    pub fn look(&mut self, pressed: impl Fn() + Send + Clone + 'static) -> io::Result<()> {
        let inputs = match fs::read_dir(INPUTS) {
            Ok(inputs) => inputs,
            // No input device yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // A device that comes later may bear the name of one that went.
        self.known.retain(|name| Path::new(INPUTS).join(name).exists());
        for input in inputs.flatten() {
            let name = input.file_name().to_string_lossy().into_owned();
            let keys = fs::read_to_string(input.path().join("device/capabilities/key")).unwrap_or_default();
            if !name.starts_with("event") || !has_key(&keys, KEY_POWER) || self.known.contains(&name) {
                continue;
            }
            let device = match File::open(Path::new("/dev/input").join(&name)) {
                Ok(device) => device,
                // It is being made, or gone already; its own event follows.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let pressed = pressed.clone();
            thread::Builder::new().name("power button".into()).spawn(move || listen(device, &pressed))?;
            self.known.insert(name);
        }
        Ok(())
    }
}

/// Ends when the device is gone.
fn listen(mut device: impl Read, pressed: &impl Fn()) {
    let mut event = [0; EVENT_SIZE];
    while device.read_exact(&mut event).is_ok() {
        let [.., t0, t1, c0, c1, v0, v1, v2, v3] = event;
        let press = u16::from_ne_bytes([t0, t1]) == EV_KEY
            && usize::from(u16::from_ne_bytes([c0, c1])) == KEY_POWER
            && i32::from_ne_bytes([v0, v1, v2, v3]) == PRESSED;
        if press {
            pressed();
        }
    }
}

/// Whether a key is in a sysfs bitmap: 64-bit words in hexadecimal, highest first.
fn has_key(bitmap: &str, key: usize) -> bool {
    let word = bitmap.split_whitespace().rev().nth(key / 64).and_then(|word| u64::from_str_radix(word, 16).ok());
    word.is_some_and(|word| word >> (key % 64) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            [&[9; 16][..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
        };
        let others = [event(1, 116, 0), event(1, 116, 2), event(1, 30, 1), event(0, 116, 1), event(0, 0, 0)];
        // With a piece of an event behind: the device was taken away.
        let device = [others.concat(), event(1, 116, 1), vec![0; 5]].concat();
        let presses = Cell::new(0);
        listen(&device[..], &|| presses.set(presses.get() + 1));
        assert_eq!(presses.get(), 1);
    }

    #[test]
    fn the_acpi_button_has_a_power_key_and_a_mouse_has_none() {
        assert!(has_key("10000000000000 0\n", KEY_POWER));
        assert!(!has_key("70000 0 0 0 0\n", KEY_POWER));
        assert!(!has_key("", KEY_POWER));
    }
}

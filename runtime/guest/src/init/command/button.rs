//! The power button, the second way to stop a guest: logind's part where there is no systemd. Follows Linux, Documentation
//! /input/event-codes.rst and `struct input_event` (include/uapi/linux/input.h).

use std::{
    fs::{self, File},
    io::{self, Read},
    sync::mpsc::Sender,
    thread,
};

use super::Event;

const FOLDER: &str = "/dev/input";
/// `sizeof(struct input_event)` on 64-bit machines: time, type, code, value.
const EVENT_SIZE: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Sends a stop at each press. A guest without a button is stopped by its agent alone.
pub(super) fn watch(sender: &Sender<Event>) {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event")) {
        let (path, sender) = (entry.path(), sender.clone());
        let watched = File::open(&path).and_then(|device| {
            thread::Builder::new().name("button".into()).spawn(move || presses(device, &sender)).map(drop)
        });
        if let Err(error) = watched {
            log::warn!("the power button {} can't be read: {error}", path.display());
        }
    }
}

/// Reads until the device ends.
pub(super) fn presses(mut device: impl Read, sender: &Sender<Event>) {
    let mut event = [0; EVENT_SIZE];
    loop {
        match device.read_exact(&mut event) {
            Ok(()) if is_press(&event) => {
                if sender.send(Event::Stop).is_err() {
                    return;
                }
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn is_press(event: &[u8; EVENT_SIZE]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_le_bytes([t0, t1]) == EV_KEY
        && u16::from_le_bytes([c0, c1]) == KEY_POWER
        && i32::from_le_bytes([v0, v1, v2, v3]) == PRESSED
}

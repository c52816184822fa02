//! Ring 3: what somebody who stands before a rack sees.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rackstick_tests::{
    image::Image,
    rack::{BOOT_LIMIT, Options, Rack},
};
use serde_json::json;

/// How long the screen may take to show what has changed, drawn by an emulated CPU.
const SCREEN_LIMIT: Duration = Duration::from_secs(30);

fn press(rack: &mut Rack, key: &str) {
    rack.qmp().execute("send-key", json!({ "keys": [{ "type": "qcode", "data": key }] }));
}

#[test]
fn whoever_stands_before_a_rack_with_an_empty_battery_sees_how_it_is_and_finds_the_log() {
    // The firmware takes 1970 for 2070, since the clock's year has two digits.
    let qemu = ["-rtc", "base=2001-01-02T00:00:00"].map(str::to_owned).to_vec();
    let options = Options { screen: true, qemu, ..Options::default() };
    let mut rack = Rack::start("before-the-rack", Image::matrix(), options);
    rack.until_status("the API to answer", BOOT_LIMIT, |_| true);
    rack.until_screen("Guests     0 of 1 healthy", SCREEN_LIMIT);
    rack.screenshot("starting");
    rack.until_healthy();
    rack.until_screen("Guests     1 of 1 healthy", SCREEN_LIMIT);
    rack.screenshot("overview");

    press(&mut rack, "f2");
    rack.until_screen("F1 goes back to the overview", SCREEN_LIMIT);
    rack.until_screen("rackstick: 1/1 guests healthy", SCREEN_LIMIT);
    rack.screenshot("log");
    press(&mut rack, "f1");
    rack.until_screen("Guests     1 of 1 healthy", SCREEN_LIMIT);

    let console = rack.console();
    let said = console.lines().find(|line| line.contains("the machine's clock said"));
    println!("{}", said.unwrap_or_default());
    assert!(said.is_some_and(|line| line.contains("said 2001-01-02; it is set to 20")), "{console}");
    // The firmware before it draws on the serial port as on a terminal.
    let ours = console.split_once("is PID 1").expect("PID 1 says that it is").1;
    assert!(!ours.contains('\u{1b}'), "the serial port has plain lines only:\n{ours}");
    rack.power_off();
}

//! What a command's end looks like from PID 1.

use super::*;

/// `struct input_event` of Linux on x86-64.
fn input_event(kind: u16, code: u16, value: i32) -> Vec<u8> {
    [&[9; 16][..], &kind.to_le_bytes(), &code.to_le_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn only_a_press_of_the_power_button_stops_the_guest() {
    let others = [(1, 116, 0), (1, 116, 2), (1, 30, 1), (0, 116, 1), (0, 0, 0)];
    let device: Vec<u8> = others.into_iter().chain([(1, 116, 1)]).flat_map(|(k, c, v)| input_event(k, c, v)).collect();
    let (sender, events) = mpsc::channel();
    // With a piece of an event behind: the device was taken away.
    button::presses(&[device, vec![0; 5]].concat()[..], &sender);
    drop(sender);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Stop)).count(), 1);
}

#[test]
fn a_command_says_how_it_ended() {
    assert_eq!(Ended::Status(3).to_string(), "exit status 3");
    assert_eq!(Ended::Signal(9).to_string(), "killed by signal 9");
}

#[test]
fn a_signal_that_linux_does_not_have_is_the_usual_one() {
    assert_eq!([3, 15, 37].map(|number| named(number).as_raw()), [3, 15, 37]);
    assert_eq!([0, 32, 33, 65, 255].map(|number| named(number).as_raw()), [15; 5]);
}

//! What a command's end looks like from PID 1.

use super::*;

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

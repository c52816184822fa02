use std::collections::BTreeMap;

use rackstick_api::rack::Activity;

use super::*;

const USUAL: Size = Size { columns: 80, rows: 25 };

fn guest(name: &str, state: State, healthy: bool, detail: &str) -> Guest {
    let (name, detail) = (name.into(), detail.into());
    Guest { name, state, healthy, detail, addresses: BTreeMap::new(), pid: None, restarts: 0 }
}

fn status(guests: Vec<Guest>) -> Status {
    Status {
        rack: "lab".into(),
        version: "2026.11.1".into(),
        uptime_s: 192,
        addresses: BTreeMap::from([("lan".into(), "10.0.2.15/24".into())]),
        guests,
        ..Status::default()
    }
}

/// What a person sees, without colours and without what is blank at the end.
fn seen(lines: &[Line]) -> String {
    let text = |line: &Line| line.0.iter().map(|span| span.text.as_str()).collect::<String>().trim_end().to_owned();
    lines.iter().map(text).collect::<Vec<_>>().join("\n")
}

fn expect(lines: &[Line], expected: &str) {
    let seen = seen(lines);
    assert_eq!(seen, expected.trim_start_matches('\n').trim_end_matches('\n'), "\n{seen}");
}

#[test]
fn a_rack_that_is_well_says_so_in_few_words() {
    let addresses = BTreeMap::from([("lan".into(), [192, 0, 2, 7].into()), ("servers".into(), [10, 20, 0, 53].into())]);
    let dns = Guest { addresses, ..guest("dns", State::Running, true, "") };
    let web = Guest { restarts: 2, ..guest("web", State::Running, true, "") };
    let lines = overview(&status(vec![dns, web]), None, USUAL);
    assert_eq!(lines.len(), USUAL.rows);
    expect(
        &lines,
        "
 lab 2026.11.1                                                    up 3 min 12 s

 Address    10.0.2.15/24 on lan

 Guests     2 of 2 healthy
 dns  healthy  192.0.2.7, 10.20.0.53
 web  healthy  restarts: 2

















 F2 log   F1 back here   Ctrl-Alt-Del reboots   the power button switches off",
    );
}

#[test]
fn what_goes_on_and_what_is_wrong_stands_above_the_guests() {
    let mut status = status(vec![
        guest("dns", State::Running, false, "it is starting"),
        guest("web", State::Waiting, false, "waits until dns is healthy"),
        guest("mail", State::Failed, false, &format!("layer {} corrupt at block 12", "0123456789abcdef".repeat(4))),
        guest("files", State::Stopped, false, ""),
    ]);
    status.addresses.clear();
    status.uptime_s = 21;
    status.problems = vec![
        "no disk holds the data partition 6f1d2c1e-4f3a-5b60-9d07-0a1b2c3d4e5f: waited 60 s for the \
         data partition's disk, which did not come; is the disk connected?"
            .into(),
    ];
    status.activities = vec![
        Activity { what: "waiting for an address on lan".into(), for_s: 12 },
        Activity { what: "starting dns".into(), for_s: 3 },
    ];
    expect(
        &overview(&status, None, USUAL),
        "
 lab 2026.11.1                                                          up 21 s

 Address    none yet
 Wrong      no disk holds the data partition
            6f1d2c1e-4f3a-5b60-9d07-0a1b2c3d4e5f: waited 60 s for the data
            partition's disk, which did not come; is the disk connected?
 Now        waiting for an address on lan, 12 s
            starting dns, 3 s

 Guests     0 of 4 healthy
 dns    running  it is starting
 web    waiting  waits until dns is healthy
 mail   failed   layer
                 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd
                 ef corrupt at block 12
 files  stopped








 F2 log   F1 back here   Ctrl-Alt-Del reboots   the power button switches off",
    );
}

#[test]
fn of_more_guests_than_fit_the_worst_are_shown_and_the_rest_counted() {
    let mut guests: Vec<Guest> =
        (0..100).map(|number| guest(&format!("guest{number}"), State::Running, true, "")).collect();
    guests[70].healthy = false;
    guests[70].detail = "connection refused".into();
    guests[90].state = State::Failed;
    guests[90].healthy = false;
    let lines = overview(&status(guests), None, USUAL);
    assert_eq!(lines.len(), USUAL.rows);
    let seen = seen(&lines);
    let rows: Vec<&str> = seen.lines().collect();
    assert_eq!(
        rows[4..7],
        [" Guests     98 of 100 healthy", " guest90  failed", " guest70  running  connection refused"]
    );
    assert_eq!(rows[22], " and 83 more: 83 healthy");
}

#[test]
fn however_much_is_wrong_the_guests_and_the_keys_stay_on_the_screen() {
    let mut status = status(vec![guest("dns", State::Running, false, "x")]);
    status.problems = (0..50).map(|number| format!("problem {number}")).collect();
    status.activities = (0..50).map(|number| Activity { what: format!("doing {number}"), for_s: 1 }).collect();
    for size in [USUAL, Size { columns: 160, rows: 50 }, Size { columns: 1, rows: 1 }, LEAST] {
        let lines = overview(&status, Some(7), size);
        assert_eq!(lines.len(), size.usable().rows);
        let seen = seen(&lines);
        assert!(seen.contains("0 of 1 healthy"), "{seen}");
        assert!(seen.contains("lines more"), "{seen}");
        assert!(seen.contains("F2 log"), "{seen}");
        assert!(seen.contains("has not answered"), "{seen}");
    }
}

#[test]
fn what_a_guest_says_can_not_steer_the_terminal() {
    let mut status = status(vec![guest("\u{1b}[2Jdns", State::Running, false, "\u{1b}c\u{9b}31m\u{202e}\n")]);
    status.problems = vec!["\u{1b}[H".into()];
    status.activities = vec![Activity { what: "\u{7}".into(), for_s: 0 }];
    status.addresses = BTreeMap::from([("\u{1b}".into(), "\u{1b}".into())]);
    status.rack = "\u{1b}".into();
    for lines in [overview(&status, None, USUAL), notice("x", "\u{1b}", Style::Bad, USUAL)] {
        let bytes = lines.iter().flat_map(|line| &line.0).flat_map(|span| span.text.bytes());
        assert!(bytes.into_iter().all(|byte| (b' '..=b'~').contains(&byte)));
    }
}

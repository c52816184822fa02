//! Ring 3: the lab as its users meet it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, net::SocketAddr, time::Duration};

use rackstick_api::rack::{Part, Request, State, Status};
use rackstick_tests::{
    client::{Transport, curl, dig, first_mail, imap, psql, send_form, send_mail, smb},
    image::Image,
    place,
    rack::{HEALTHY_LIMIT, Options, Rack, guest},
};

/// What the host may use for itself, in KiB.
const HOST_MEMORY_GOAL_KIB: u64 = 128 * 1024;
/// All guests.
const GUESTS: [&str; 5] = ["db", "dns", "files", "mail", "web"];
/// How long five guests may take, one of which makes a database cluster, on two emulated CPUs that may have other work.
const FIVE_GUESTS_LIMIT: Duration = Duration::from_secs(900);
/// How long a service may take for what it does once it runs.
const SERVICE_LIMIT: Duration = Duration::from_secs(180);
/// A message that every spam filter takes for spam: Generic Test for Unsolicited Bulk Email.
const GTUBE: &str = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";

#[test]
fn the_lab_comes_up_answers_its_clients_and_switches_off_cleanly() {
    let mut rack = Rack::start("lab", Image::lab(), Options::default());
    let status = rack.until_healthy_within(FIVE_GUESTS_LIMIT);
    rack.until_console("5/5 guests healthy", Duration::from_secs(10));
    boots_as_it_should(&mut rack, &status);

    for (port, transport) in [("53/udp", Transport::Udp), ("53/tcp", Transport::Tcp)] {
        assert_eq!(
            dig(rack.address(port), transport, "www.lab.internal").as_deref(),
            Ok(&["10.20.0.80".to_owned()][..])
        );
    }
    let page = fs::read_to_string(place::clone().join("recipes/images/web/index.html")).unwrap();
    assert_eq!(curl(rack.address("8080/tcp"), "/"), Ok(page));
    takes_donations_into_the_database(&mut rack);
    takes_mail_and_refuses_spam(&mut rack);
    keeps_files_for_who_has_an_account(&mut rack);

    rack.power_off();
    for name in GUESTS {
        let stopped = format!("{name}: stopped (it switched itself off)");
        assert!(rack.console().contains(&stopped), "`{stopped}` is not on the console");
    }
}

fn boots_as_it_should(rack: &mut Rack, status: &Status) {
    assert_eq!((status.rack.as_str(), status.problems.as_slice()), ("lab", [].as_slice()));
    for name in GUESTS {
        let guest = guest(status, name);
        assert_eq!((guest.state, guest.restarts, guest.detail.as_str()), (State::Running, 0, ""), "{name}");
    }
    println!("{}", rack.boot(status));
    let first = status.boot.iter().find(|phase| phase.part == Part::FirstGuest);
    assert!(first.is_some_and(|phase| phase.took_ms.is_some()), "{:?}", status.boot);
    rack.until_console("first guest started ", Duration::from_secs(30));
    println!("host memory {:.1} MiB", status.host_memory_kib as f64 / 1024.0);
    assert!((1..=HOST_MEMORY_GOAL_KIB).contains(&status.host_memory_kib), "{} KiB", status.host_memory_kib);
}

/// The password that a guest has drawn for somebody, as it says on its console.
fn password(rack: &mut Rack, guest: &str, whose: &str) -> String {
    let begin = format!("password of {whose} is ");
    rack.until(&format!("`{begin}` on the console of {guest}"), SERVICE_LIMIT, |rack| {
        let console = rack.client().text(Request::Console { guest: guest.into() }).ok()?;
        let (_, rest) = console.rsplit_once(&begin)?;
        // Whole only if its line has ended.
        let (password, _) = rest.split_once(['\r', '\n'])?;
        Some(password.to_owned())
    })
}

const ALL: &str = "SELECT name, email, cents, message FROM donation ORDER BY id";

fn donate(server: SocketAddr, name: &str, amount: &str) -> (u16, String, String) {
    let fields = [("name", name), ("email", "ada@example.org"), ("amount", amount), ("message", "for the lab")];
    send_form(server, "/donate", &fields).unwrap()
}

fn takes_donations_into_the_database(rack: &mut Rack) {
    let (web, database) = (rack.address("8080/tcp"), rack.address("5432/tcp"));
    let secret = password(rack, "db", "bookkeeper");
    let ask = |query: &str| psql(database, "donations", "bookkeeper", &secret, query);
    assert_eq!(ask(ALL).as_deref(), Ok(""));

    // What would be an order, were it not a value.
    let name = "Ada'); DROP TABLE donation; --";
    let (status, leads_to, _) = donate(web, name, "12,50");
    assert_eq!((status, leads_to), (303, format!("http://{web}/thanks.html")));
    assert!(curl(web, "/thanks.html").unwrap().contains("Thank you."));
    let row = format!("{name}|ada@example.org|1250|for the lab\n");
    assert_eq!(ask(ALL), Ok(row.clone()));

    for (name, amount, why) in [
        ("", "5", "“name” has 0 characters"),
        ("Ada", "much", "The amount is a number of euros"),
        ("Ada", "0.50", "The amount can be 1 to 100000 euros"),
        (&"x".repeat(101), "5", "“name” has 101 characters"),
    ] {
        let (status, _, text) = donate(web, name, amount);
        assert!(status == 400 && text.contains(why), "{name} {amount}: {status} {text}");
    }
    let (status, _, text) = send_form(web, "/donate", &[("name[]", "Ada"), ("amount", "5")]).unwrap();
    assert!(status == 400 && text.contains("“name” is not text"), "{status} {text}");
    assert_eq!(ask(ALL), Ok(row.clone()));

    // Each may only what it is for.
    let refused = ask("INSERT INTO donation (name, email, cents, message) VALUES ('a', 'a@b', 100, '')").unwrap_err();
    assert!(refused.contains("permission denied"), "{refused}");
    let refused = psql(database, "donations", "bookkeeper", "wrong", ALL).unwrap_err();
    assert!(refused.contains("password authentication failed"), "{refused}");
    let refused = psql(database, "donations", "web", "", ALL).unwrap_err();
    assert!(refused.contains("no pg_hba.conf entry"), "{refused}");

    // Without its database the site says so, and what was given before is still there afterwards.
    rack.client().order(Request::Stop { guest: "db".into() }).unwrap();
    rack.until_status("db to stop", HEALTHY_LIMIT, |status| guest(status, "db").state == State::Stopped);
    let (status, _, text) = donate(web, "Grace", "5");
    assert!(status == 503 && text.contains("our database does not answer"), "{status} {text}");
    rack.client().order(Request::Start { guest: "db".into() }).unwrap();
    rack.until_status("db to be healthy again", HEALTHY_LIMIT, |status| guest(status, "db").healthy);
    // It takes connections, and so is healthy, a moment before it takes orders.
    rack.until("the site to take a donation again", SERVICE_LIMIT, |_| {
        (donate(web, "Grace", "5").0 == 303).then_some(())
    });
    assert_eq!(ask(ALL), Ok(format!("{row}Grace|ada@example.org|500|for the lab\n")));
}

fn takes_mail_and_refuses_spam(rack: &mut Rack) {
    let (smtp, imaps) = (rack.address("25/tcp"), rack.address("993/tcp"));
    let secret = password(rack, "mail", "alice");

    send_mail(smtp, "alice@lab.internal", "The shelf", "It stands in one box now.").unwrap();
    let refused = send_mail(smtp, "alice@lab.internal", "Great offer", GTUBE).unwrap_err();
    assert!(refused.contains("550 5.7.1"), "{refused}");
    let refused = send_mail(smtp, "nobody@lab.internal", "Who", "Nobody.").unwrap_err();
    assert!(refused.contains("550 5.1.1"), "{refused}");
    let refused = send_mail(smtp, "somebody@example.org", "A relay", "It is none.").unwrap_err();
    assert!(refused.contains("554 5.7.1"), "{refused}");

    let message = rack.until("the message in the mailbox", SERVICE_LIMIT, |_| first_mail(imaps, "alice", &secret).ok());
    assert!(message.contains("Subject: The shelf") && message.contains("It stands in one box now."), "{message}");
    assert!(message.contains("X-Spam-Status: No"), "nobody has looked at it: {message}");
    let count = imap(imaps, "alice", &secret, "STATUS INBOX (MESSAGES)").unwrap();
    assert!(count.contains("(MESSAGES 1)"), "the spam is there: {count}");
    let refused = imap(imaps, "alice", "wrong", "STATUS INBOX (MESSAGES)").unwrap_err();
    assert!(refused.contains("Login denied"), "{refused}");
}

fn keeps_files_for_who_has_an_account(rack: &mut Rack) {
    let server = rack.address("445/tcp");
    let (alice, bob) = (password(rack, "files", "alice"), password(rack, "files", "bob"));
    let folder = tempfile::tempdir().unwrap();
    let [there, back] = ["there", "back"].map(|name| folder.path().join(name));
    fs::write(&there, "minutes of the meeting\n".repeat(10_000)).unwrap();
    smb(server, "office", "alice", &alice, &format!("mkdir 2026; put {} 2026/minutes.txt", there.display())).unwrap();
    smb(server, "office", "bob", &bob, &format!("get 2026/minutes.txt {}", back.display())).unwrap();
    assert!(fs::read(&there).unwrap() == fs::read(&back).unwrap());
    for (user, password) in [("alice", "wrong"), ("root", ""), ("", "")] {
        let refused = smb(server, "office", user, password, "ls").unwrap_err();
        assert!(refused.contains("NT_STATUS_LOGON_FAILURE") || refused.contains("ACCESS_DENIED"), "{user}: {refused}");
    }
}

//! A guest whose volumes are on a file system that takes its time: needs root, as all of CI has.

use std::{
    process::Command,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use rackstick_api::rack;

use super::*;
use crate::daemon::network::firewall::tests as sample;

/// Longer than a preparation on a disk that answers may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A data partition whose disk can be made to answer nobody.
struct Stick {
    folder: tempfile::TempDir,
    stuck: bool,
}

impl Stick {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (image, mount) = (folder.path().join("image"), folder.path().join("data"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run("mke2fs", &["-q", "-t", "ext4", image.to_str().unwrap()]);
        run("mount", &["-t", "ext4", "-o", "loop", image.to_str().unwrap(), mount.to_str().unwrap()]);
        Self { folder, stuck: false }
    }

    fn mount(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A guest of which nobody else remembers anything.
    fn guest(&self) -> String {
        self.folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned()
    }

    fn set_stuck(&mut self, stuck: bool) {
        if self.stuck != stuck {
            run("fsfreeze", &[if stuck { "-f" } else { "-u" }, self.mount().to_str().unwrap()]);
            self.stuck = stuck;
        }
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        self.set_stuck(false);
        run("umount", &[self.mount().to_str().unwrap()]);
        // Only there once the guest was stopped.
        let _ = std::fs::remove_file(record::path(&self.guest()));
    }
}

fn guest(stick: &Stick, events: Sender<Event>) -> (Guest, Manifest) {
    let mut manifest = sample::manifest();
    let mut spec = manifest.guests.remove(0);
    spec.name = stick.guest();
    spec.volumes = vec![manifest::Volume { name: "a".into(), mount: "/srv/a".into(), size_mib: 32 }];
    let mut guest = Guest::find(&manifest, spec, 0, events);
    guest.data = stick.mount();
    (guest, manifest)
}

fn prepared(inbox: &Receiver<Event>) -> Result<Vec<volumes::Ready>, volumes::Error> {
    match inbox.recv_timeout(PATIENCE).unwrap() {
        Event::Volumes { index: 0, prepared } => prepared,
        _ => panic!("another event than the volumes'"),
    }
}

/// Keeps a guest whose volumes are ready from really being started.
fn busy() -> Option<Obstacle> {
    Some(Obstacle::Wait("a test".into()))
}

#[test]
fn a_stick_that_takes_its_time_for_a_volume_keeps_nobody_waiting_and_two_never_make_one() {
    let mut stick = Stick::new();
    let (events, inbox) = channel();
    let (mut guest, manifest) = guest(&stick, events);
    stick.set_stuck(true);
    let begun = Instant::now();
    guest.advance(&manifest, || None, begun);
    // A main loop that waited for the disk would never get here: nobody makes it answer again.
    assert_eq!(
        (guest.status().state, &*guest.status().detail),
        (rack::State::Waiting, "its volumes are being prepared")
    );
    assert_eq!(guest.activity(), Some((begun, format!("preparing the volumes of {}", guest.spec.name))));

    // Stopped, started again: the first preparation goes on, and the machine does not end over it.
    guest.stop(begun);
    assert_eq!((guest.status().state, guest.holds_data()), (rack::State::Stopped, true));
    guest.resume();
    guest.advance(&manifest, || None, begun);
    assert_eq!(&*guest.status().detail, "its volumes are being prepared");
    stick.set_stuck(false);
    let first = prepared(&inbox);
    assert_eq!(first.as_ref().unwrap()[0].path, stick.mount().join(format!("volumes/{}/a", guest.spec.name)));
    guest.prepared(first, begun);
    assert!(!guest.holds_data());
    guest.advance(&manifest, busy, begun);
    assert_eq!(&*guest.status().detail, "a test");
    assert!(inbox.recv_timeout(Duration::ZERO).is_err(), "a second preparation has ended");

    // Stopped while they are made: nothing is started when they are ready, and they are looked at again for the next
    // start.
    guest.stop(begun);
    guest.resume();
    guest.advance(&manifest, || None, begun);
    guest.stop(begun);
    guest.prepared(prepared(&inbox), begun);
    assert_eq!((guest.status().state, guest.holds_data()), (rack::State::Stopped, false));
    assert_eq!(guest.deadline(), None);
}

#[test]
fn volumes_that_can_not_be_made_are_tried_again_later() {
    let stick = Stick::new();
    let (events, inbox) = channel();
    let (mut guest, manifest) = guest(&stick, events);
    // Something else is where the folder should be.
    std::fs::write(stick.mount().join("volumes"), "").unwrap();
    let now = Instant::now();
    guest.advance(&manifest, || None, now);
    guest.prepared(prepared(&inbox), now);
    assert_eq!(guest.status().state, rack::State::Waiting);
    assert!(guest.status().detail.contains("volumes"), "{}", guest.status().detail);
    std::fs::remove_file(stick.mount().join("volumes")).unwrap();
    let again = guest.deadline().unwrap();
    assert!(again > now);
    guest.advance(&manifest, || None, again);
    assert!(prepared(&inbox).is_ok());
}

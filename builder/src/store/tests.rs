use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    server::{Answer, Server, nobody},
    tidy::Swept,
    *,
};
use crate::{archive::Mirrors, progress::Progress};

/// A store of its own for each test, and a server.
struct Rig {
    folder: TempDir,
    store: Store,
    server: Server,
    client: Client,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("cache")).unwrap();
        let client = Client::patient(Duration::from_millis(700), Duration::from_millis(700));
        Self { folder, store, server: Server::start(), client }
    }

    fn obtain(&self, wants: &[Want]) -> Result<(), StoreError> {
        self.obtain_from(&[self.server.root("debian")], wants)
    }

    fn obtain_from(&self, roots: &[String], wants: &[Want]) -> Result<(), StoreError> {
        self.store.obtain(&self.client, wants, &Mirrors::given(roots).unwrap(), &Progress::quiet())
    }

    fn content(&self, want: &Want) -> Vec<u8> {
        fs::read(self.store.path(want.sha256)).unwrap()
    }

    fn partial(&self, want: &Want) -> PathBuf {
        self.store.partial().join(want.sha256.to_string())
    }

    fn assert_nothing_is_half_done(&self) {
        let left: Vec<_> = fs::read_dir(self.store.partial()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Bytes that are nowhere the same, so that a piece in the wrong place shows.
fn bytes(count: usize) -> Vec<u8> {
    (0_u32..).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).take(count).collect()
}

fn want(name: &str, bytes: &[u8]) -> Want {
    Want {
        name: format!("{name} 1.0"),
        archive: "debian".to_owned(),
        path: format!("pool/{name}.deb"),
        size: bytes.len() as u64,
        sha256: Sha256::of(bytes),
    }
}

#[test]
fn what_was_fetched_once_needs_no_mirror_again() {
    let rig = Rig::new();
    let files: Vec<_> = (0..40).map(|i| bytes(i * 1000 + 1)).collect();
    let wants: Vec<_> = files.iter().enumerate().map(|(i, bytes)| want(&format!("p{i}"), bytes)).collect();
    for (want, bytes) in wants.iter().zip(&files) {
        rig.server.answer(&format!("/debian/{}", want.path), vec![Answer::Whole(bytes.clone())]);
    }
    rig.obtain(&wants).unwrap();
    for (want, bytes) in wants.iter().zip(&files) {
        assert_eq!(rig.content(want), *bytes);
    }
    assert_eq!(rig.server.requests().len(), 40);
    rig.assert_nothing_is_half_done();
    rig.obtain_from(&[nobody("debian")], &wants).unwrap();
}

#[test]
fn an_altered_file_in_the_store_is_found_and_fetched_again() {
    let rig = Rig::new();
    let good = bytes(100_000);
    let want = want("a", &good);
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Whole(good.clone())]);
    rig.obtain(std::slice::from_ref(&want)).unwrap();
    let mut bad = good.clone();
    bad[77_777] ^= 1;
    for damage in [bad, good[..99_999].to_vec(), Vec::new()] {
        fs::write(rig.store.path(want.sha256), damage).unwrap();
        rig.obtain(std::slice::from_ref(&want)).unwrap();
        assert_eq!(rig.content(&want), good);
    }
}

#[test]
fn a_download_that_is_cut_short_goes_on_where_it_stopped() {
    let rig = Rig::new();
    let good = bytes(300_000);
    let want = want("a", &good);
    rig.server.answer(
        "/debian/pool/a.deb",
        vec![Answer::Cut(good.clone(), 100_000), Answer::Cut(good.clone(), 100_000), Answer::Whole(good.clone())],
    );
    rig.obtain(std::slice::from_ref(&want)).unwrap();
    assert_eq!(rig.content(&want), good);
    let path = "/debian/pool/a.deb";
    assert_eq!(rig.server.requests(), [path.to_owned(), format!("{path} from 100000"), format!("{path} from 200000")]);
}

#[test]
fn a_later_run_goes_on_where_an_interrupted_one_stopped() {
    let rig = Rig::new();
    let good = bytes(300_000);
    let want = want("a", &good);
    fs::write(rig.partial(&want), &good[..123_456]).unwrap();
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Whole(good.clone())]);
    rig.obtain(std::slice::from_ref(&want)).unwrap();
    assert_eq!(rig.content(&want), good);
    assert_eq!(rig.server.requests(), ["/debian/pool/a.deb from 123456"]);
    rig.assert_nothing_is_half_done();
}

#[test]
fn what_an_interrupted_run_left_is_not_trusted() {
    let good = bytes(300_000);
    let mut wrong = good[..123_456].to_vec();
    wrong[5] ^= 1;
    for left in [wrong, vec![0; 300_000], vec![0; 400_000]] {
        let rig = Rig::new();
        let want = want("a", &good);
        fs::write(rig.partial(&want), left).unwrap();
        rig.server.answer("/debian/pool/a.deb", vec![Answer::Whole(good.clone())]);
        rig.obtain(std::slice::from_ref(&want)).unwrap();
        assert_eq!(rig.content(&want), good);
    }
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let rig = Rig::new();
    let good = bytes(300_000);
    let want = want("a", &good);
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Cut(good.clone(), 99_999), Answer::NoRanges(good.clone())]);
    rig.obtain(std::slice::from_ref(&want)).unwrap();
    assert_eq!(rig.content(&want), good);
}

#[test]
fn a_wrong_file_is_an_error_that_names_it_and_both_hashes() {
    let rig = Rig::new();
    let good = bytes(1000);
    let mut bad = good.clone();
    bad[0] ^= 1;
    let want = want("a", &good);
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Whole(bad.clone())]);
    let error = rig.obtain(std::slice::from_ref(&want)).unwrap_err().to_string();
    let found = Sha256::of(&bad);
    for part in ["a 1.0", "pool/a.deb", &want.sha256.to_string(), &found.to_string()] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!rig.store.path(want.sha256).exists());
    assert_eq!(rig.server.requests().len(), 1, "asking the same mirror again is useless");
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Whole([good.clone(), vec![0]].concat())]);
    let error = rig.obtain(std::slice::from_ref(&want)).unwrap_err().to_string();
    assert!(error.contains("larger than 1000 bytes"), "{error}");
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Whole(good[..999].to_vec())]);
    let error = rig.obtain(std::slice::from_ref(&want)).unwrap_err().to_string();
    assert!(error.contains("cut short after 999 of 1000 bytes"), "{error}");
}

#[test]
fn another_mirror_helps_where_one_is_down_wrong_or_lacks_the_file() {
    let good = bytes(200_000);
    for answer in [None, Some(Answer::Status(404)), Some(Answer::Status(503)), Some(Answer::Whole(bytes(200_001)))] {
        let rig = Rig::new();
        let want = want("a", &good);
        let other = Server::start();
        other.answer("/debian/pool/a.deb", vec![Answer::Whole(good.clone())]);
        let first = match answer {
            None => nobody("debian"),
            Some(answer) => {
                rig.server.answer("/debian/pool/a.deb", vec![answer]);
                rig.server.root("debian")
            }
        };
        rig.obtain_from(&[first, other.root("debian")], std::slice::from_ref(&want)).unwrap();
        assert_eq!(rig.content(&want), good);
    }
}

#[test]
fn a_mirror_that_is_down_is_an_error_that_says_so_once_and_soon() {
    let rig = Rig::new();
    let wants: Vec<_> = (0..200).map(|i| want(&format!("p{i}"), &bytes(i + 1))).collect();
    let start = Instant::now();
    let error = rig.obtain_from(&[nobody("debian")], &wants).unwrap_err();
    // One after the other they would take a minute.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let error = error.to_string();
    assert!(error.contains("the mirror is down") && error.lines().count() == 2, "{error}");
}

#[test]
fn all_files_that_no_mirror_has_any_more_are_named_together() {
    let rig = Rig::new();
    let good = bytes(10);
    rig.server.answer("/debian/pool/b.deb", vec![Answer::Whole(good.clone())]);
    let wants = [want("a", b"1"), want("b", &good), want("c", b"2")];
    match rig.obtain(&wants) {
        Err(StoreError::Gone(gone)) => assert_eq!(gone, [wants[0].clone(), wants[2].clone()]),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.content(&wants[1]), good, "what could be had is there");
}

#[test]
fn a_slow_mirror_is_borne_and_a_stalled_one_is_left() {
    let rig = Rig::new();
    let good = bytes(400_000);
    let slow = want("slow", &good);
    // 400,000 bytes take 1.2 s, longer than one answer may.
    rig.server.answer("/debian/pool/slow.deb", vec![Answer::Slow(good.clone(), 50_000, Duration::from_millis(150))]);
    rig.obtain(std::slice::from_ref(&slow)).unwrap();
    assert_eq!(rig.content(&slow), good);

    let other = bytes(150_000);
    let stalled = want("stalled", &other);
    rig.server.answer(
        "/debian/pool/stalled.deb",
        vec![Answer::Stall(other.clone(), 100_000), Answer::Stall(other.clone(), 0), Answer::Whole(other.clone())],
    );
    rig.obtain(std::slice::from_ref(&stalled)).unwrap();
    assert_eq!(rig.content(&stalled), other);
}

#[test]
fn builders_at_the_same_time_fetch_a_file_once() {
    let rig = Rig::new();
    let good = bytes(500_000);
    let want = want("a", &good);
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Slow(good.clone(), 100_000, Duration::from_millis(30))]);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let store = Store::at(rig.folder.path().join("cache")).unwrap();
                let mirrors = Mirrors::given(&[rig.server.root("debian")]).unwrap();
                store.obtain(&Client::new(), std::slice::from_ref(&want), &mirrors, &Progress::quiet()).unwrap();
            });
        }
    });
    assert_eq!(rig.content(&want), good);
    assert_eq!(rig.server.requests().len(), 1);
    rig.assert_nothing_is_half_done();
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_it_is_fetched() {
    let rig = Rig::new();
    let huge = Want { size: u64::MAX / 4, ..want("a", b"") };
    match rig.obtain(&[huge]) {
        Err(StoreError::NoSpace { needed, free, .. }) => assert!(needed > free && free > 0),
        other => panic!("{other:?}"),
    }
    assert!(rig.server.requests().is_empty());
}

/// Set in the process that has the small disk.
const SMALL_DISK: &str = "RACKSTICK_TEST_SMALL_DISK";

/// The folder of a small disk. None if the test, called `name`, ran again in namespaces of its own, where one can be
/// mounted.
pub fn small_disk(name: &str, options: &str) -> Option<PathBuf> {
    let disk = std::env::var_os(SMALL_DISK).map(PathBuf::from);
    if disk.is_none() {
        let folder = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg("mount -t tmpfs -o \"$1\" none \"$2\" && shift 2 && exec \"$@\"")
            .args(["sh", options])
            .arg(folder.path())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(SMALL_DISK, folder.path())
            .status()
            .unwrap();
        assert!(status.success());
    }
    disk
}

#[test]
fn a_disk_that_fills_up_meanwhile_is_an_error_and_the_next_run_goes_on() {
    let name = "store::tests::a_disk_that_fills_up_meanwhile_is_an_error_and_the_next_run_goes_on";
    let Some(disk) = small_disk(name, "size=1m") else { return };
    let rig = Rig { store: Store::at(disk.join("cache")).unwrap(), client: Client::new(), ..Rig::new() };
    let good = bytes(600_000);
    let want = want("a", &good);
    let pause = Duration::from_millis(20);
    rig.server.answer("/debian/pool/a.deb", vec![Answer::Slow(good.clone(), 20_000, pause)]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !fs::metadata(rig.partial(&want)).is_ok_and(|file| file.len() > 50_000) {
                std::thread::sleep(pause / 10);
            }
            fs::write(disk.join("other"), bytes(1 << 20)).unwrap_err();
        });
        match rig.obtain(std::slice::from_ref(&want)) {
            Err(StoreError::NoSpace { .. }) => {}
            other => panic!("{other:?}"),
        }
    });
    fs::remove_file(disk.join("other")).unwrap();
    rig.obtain(std::slice::from_ref(&want)).unwrap();
    assert_eq!(rig.content(&want), good);
    assert!(rig.server.requests()[1].contains(" from "), "{:?}", rig.server.requests());
}

#[test]
fn a_store_that_can_not_be_made_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let error = Store::at(file.join("cache")).err().unwrap().to_string();
    assert!(error.contains("file/cache"), "{error}");
}

/// Lets a file of the store look as if it was last used an hour ago.
fn age(path: &Path) {
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().append(true).open(path).unwrap().set_modified(hour_ago).unwrap();
}

/// Seconds since 1970, half an hour ago.
fn half_an_hour_ago() -> i64 {
    crate::clock::now() - 1800
}

#[test]
fn what_no_build_used_for_long_goes_and_what_was_used_or_is_kept_stays() {
    let rig = Rig::new();
    let wants: Vec<_> = ["old", "kept", "used"].map(|name| want(name, name.as_bytes())).into();
    for want in &wants {
        let name = want.path["pool/".len()..].trim_end_matches(".deb");
        rig.server.answer(&format!("/debian/{}", want.path), vec![Answer::Whole(name.into())]);
    }
    rig.obtain(&wants).unwrap();
    wants.iter().for_each(|want| age(&rig.store.path(want.sha256)));
    rig.obtain_from(&[nobody("debian")], &wants[2..]).unwrap();
    for (name, old) in [("older", true), ("newer", false)] {
        let path = rig.partial(&want(name, name.as_bytes()));
        fs::write(&path, "half").unwrap();
        if old {
            age(&path);
        }
    }
    // Of a build that was killed: its folder was not removed.
    let killed = rig.store.scratch().unwrap().keep();
    fs::write(killed.join("uki"), "half").unwrap();
    fs::create_dir(rig.store.folder().join("target")).unwrap();

    let keep = [wants[1].sha256].into();
    let expected = Swept { files: 1, partial: 1, leftovers: 1 };
    assert_eq!(rig.store.sweep(&keep, half_an_hour_ago(), true).unwrap(), expected);
    assert!(killed.exists() && rig.store.path(wants[0].sha256).exists(), "pretended only");
    assert_eq!(rig.store.sweep(&keep, half_an_hour_ago(), false).unwrap(), expected);
    let there: Vec<bool> = wants.iter().map(|want| rig.store.path(want.sha256).exists()).collect();
    assert_eq!(there, [false, true, true]);
    assert!(!killed.exists() && rig.store.folder().join("target").exists());
    assert_eq!(fs::read_dir(rig.store.partial()).unwrap().count(), 1);
    assert_eq!(rig.store.sweep(&keep, half_an_hour_ago(), false).unwrap(), Swept::default());
}

#[test]
fn a_damaged_file_is_found_named_and_removed() {
    let rig = Rig::new();
    let wants: Vec<_> = ["good", "bad"].map(|name| want(name, name.as_bytes())).into();
    for (want, content) in wants.iter().zip(["good", "bed"]) {
        fs::write(rig.store.path(want.sha256), content).unwrap();
    }
    let damaged = Damaged { path: rig.store.path(wants[1].sha256), package: None };
    // What can't be read keeps nobody from looking at all else, and stays.
    let unread = rig.store.path(want("unread", b"unread").sha256);
    fs::create_dir(&unread).unwrap();
    let verify = || {
        let (count, wrong) = rig.store.verify();
        let (removed, left): (Vec<_>, Vec<_>) = wrong.into_iter().partition(Result::is_ok);
        let left: Vec<String> = left.into_iter().map(|wrong| wrong.unwrap_err().to_string()).collect();
        (count, removed.into_iter().map(Result::unwrap).collect::<Vec<_>>(), left)
    };
    let (count, removed, left) = verify();
    assert_eq!((count, removed), (3, vec![damaged]));
    assert!(left.len() == 1 && left[0].contains(unread.to_str().unwrap()), "{left:?}");
    fs::remove_dir(&unread).unwrap();
    assert_eq!(verify(), (1, vec![], vec![]));
}

#[test]
fn who_tidies_up_waits_for_builders_and_they_wait_for_it() {
    let rig = Rig::new();
    let open = || Store::at(rig.folder.path().join("cache")).unwrap();
    let (waits, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let tidying = scope.spawn(|| open().alone(move || waits.send(()).unwrap()).unwrap());
        waiting.recv().unwrap();
        assert!(!tidying.is_finished());
        drop(rig.store);
        let alone = tidying.join().unwrap();
        let builder = scope.spawn(open);
        // Not a proof, but a builder that does not wait is seen nearly always.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!builder.is_finished());
        drop(alone);
        builder.join().unwrap();
    });
}

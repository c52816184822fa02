//! What is kept of finished layers: found again and not built twice, built again when it is damaged or was cut off,
//! removed when nobody needs it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use rackstick::{
    layers::{Additions, Layer, Layers, Package, RecipeFile, Swept},
    stamp::Stamp,
};

use super::{Bench, EPOCH, PROGRAM, mini::Workshop, read};

#[test]
fn the_same_inputs_give_the_same_bytes_and_are_not_built_twice() {
    let (one, two) = (Bench::new(), Bench::new());
    let layers = [&one, &two].map(|bench| {
        let base = bench.base();
        let draft = bench.workshop.draft("same");
        draft
            .file("/usr/share/same/x", b"x", 0o644)
            .script("postinst", "echo $RANDOM; id > /etc/id; env > /etc/env; mkdir /var/new");
        fs::write(bench.dir.path().join("page"), "page").unwrap();
        let source = bench.dir.path().join("page");
        // The second is a file that a build would clean away if a script had left it.
        let files = [("/srv/www/page", None), ("/etc/resolv.conf", Some(0o600))]
            .map(|(path, mode)| RecipeFile { path: path.into(), source: source.clone(), mode, ..RecipeFile::default() })
            .to_vec();
        let additions = Additions { packages: vec![draft.build()], files, ..Additions::default() };
        let steps = Mutex::new(0);
        let count = |_: &str| *steps.lock().unwrap() += 1;
        let made = bench.layers.image("same", &base, &additions, &count).unwrap();
        let first = std::mem::take(&mut *steps.lock().unwrap());
        assert_eq!(bench.layers.image("same", &base, &additions, &count).unwrap(), made);
        assert_eq!((first > 0, *steps.lock().unwrap()), (true, 0), "the second time there is nothing to do");
        for (path, mode) in [("srv/www/page", 0o644), ("etc/resolv.conf", 0o600)] {
            let page = bench.unpacked(&made[1].1).join(path);
            let metadata = fs::metadata(&page).unwrap();
            assert_eq!((read(page), metadata.mode() & 0o7777, metadata.uid()), ("page".to_owned(), mode, 0));
        }
        [base.layer, made[0].1.clone(), made[1].1.clone()]
    });
    for (one, two) in layers[0].iter().zip(&layers[1]) {
        assert_eq!(one.digest, two.digest);
        assert_eq!(fs::read(&one.path).unwrap(), fs::read(&two.path).unwrap());
    }
}

#[test]
fn leftovers_of_a_build_that_was_cut_off_are_no_hindrance() {
    let bench = Bench::new();
    let base = bench.base();
    let sleeper = bench.workshop.draft("sleeper");
    sleeper.script("postinst", "echo > /etc/half; test -e /etc/nothing || sleep 1000");
    let package = sleeper.build();
    // The builder is killed while the script sleeps: its stage must not outlive it.
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::a_build_that_never_ends", "--ignored", "--nocapture"])
        .env("BENCH", bench.dir.path())
        .env("DEB", &package.deb)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(builder.stdout.take().unwrap());
    let began = std::io::BufRead::lines(output).map_while(Result::ok).any(|line| line.contains("configure sleeper"));
    assert!(began, "the script was never started");
    assert!(!bench.leftovers().is_empty());
    let nothing = Swept::default();
    assert_eq!(bench.layers.sweep(|_, _| true, false).unwrap(), nothing, "what a builder works on stays");
    builder.kill().unwrap();
    builder.wait().unwrap();
    // Waits for the lock, which the dead builder's processes do not hold, and clears away.
    let fine = bench.workshop.draft("fine").build();
    bench.image(&base, &[fine]).unwrap();
    let mended = bench.workshop.draft("sleeper");
    mended.script("postinst", "echo > /etc/half");
    let again = Package { sha256: package.sha256, ..mended.build() };
    let layer = bench.image(&base, &[again]).unwrap();
    assert!(bench.unpacked(&layer).join("etc/half").exists());
    assert_eq!(bench.leftovers(), [""; 0]);
}

#[test]
#[ignore = "run by leftovers_of_a_build_that_was_cut_off_are_no_hindrance, which kills it"]
fn a_build_that_never_ends() {
    let dir = PathBuf::from(std::env::var_os("BENCH").unwrap());
    let layers = Layers::new(&dir.join("cache"), Path::new(PROGRAM), EPOCH, 2).unwrap();
    let base = layers.base(&[Workshop::new(&dir.join("again")).base()], &|_| ()).unwrap();
    let deb = PathBuf::from(std::env::var_os("DEB").unwrap());
    let sha256 = rackstick_image::digest::Sha256::of_file(&deb).unwrap();
    let packages = vec![Package { name: "sleeper".to_owned(), version: "1".to_owned(), sha256, deb }];
    let additions = Additions { packages, ..Additions::default() };
    let ended = layers.image("test", &base, &additions, &|step| println!("{step}"));
    unreachable!("{ended:?}");
}

#[test]
fn what_a_killed_build_left_and_what_is_not_kept_goes() {
    let bench = Bench::new();
    let draft = bench.workshop.draft("owned");
    draft.script("postinst", "mkdir /srv; echo > /srv/x; chown -R daemon /srv; chmod 700 /srv");
    let base = bench.layers.base(&[bench.workshop.base(), draft.build()], &|_| ()).unwrap();
    let image = bench.image(&base, &[bench.workshop.draft("a").build()]).unwrap();
    let cache = bench.dir.path().join("cache");
    fs::create_dir_all(cache.join(format!("{}.work/upper", "0".repeat(64)))).unwrap();
    fs::write(cache.join(format!("{}.partial", "0".repeat(64))), "half").unwrap();
    let key = |layer: &Layer| layer.path.file_stem().unwrap().to_str().unwrap().to_owned();

    let expected = Swept { layers: 1, leftovers: 1 };
    let kept = key(&image);
    assert_eq!(bench.layers.sweep(|key, _| key == kept, true).unwrap(), expected);
    assert!(base.layer.path.exists(), "pretended only");
    assert_eq!(bench.layers.sweep(|key, _| key == kept, false).unwrap(), expected);
    let left = fs::read_dir(&cache).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["erofs", "json", "leaves", "lock", "tree"].map(|suffix| format!("{kept}.{suffix}")));
    let again = bench.layers.base(&[bench.workshop.base(), draft.build()], &|_| ()).unwrap();
    assert_eq!(again.layer, base.layer);
}

#[test]
fn a_layer_that_is_no_longer_what_it_was_is_found_and_built_again() {
    let bench = Bench::new();
    let packages = [bench.workshop.base()];
    let additions = [bench.workshop.draft("a").build()];
    let base = bench.layers.base(&packages, &|_| ()).unwrap();
    let image = bench.image(&base, &additions).unwrap();
    let damage = |layer: &Layer, at: usize| {
        let mut bytes = fs::read(&layer.path).unwrap();
        bytes[at] ^= 1;
        fs::write(&layer.path, bytes).unwrap();
    };
    let whole = |layer: &Layer| {
        let digest = rackstick_image::verity::digest(fs::File::open(&layer.path).unwrap()).unwrap();
        digest == layer.digest && fs::metadata(&layer.path).unwrap().len() == layer.size
    };
    damage(&base.layer, 4000);
    damage(&image, usize::try_from(image.size).unwrap() - 1);
    let again = bench.layers.base(&packages, &|_| ()).unwrap();
    assert_eq!((&again, whole(&again.layer)), (&base, true));
    let again = bench.image(&again, &additions).unwrap();
    assert_eq!((&again, whole(&again)), (&image, true));

    let (count, wrong) = bench.layers.verify();
    assert!(count == 2 && wrong.is_empty(), "{wrong:?}");
    damage(&base.layer, 5000);
    fs::write(&image.path, "").unwrap();
    // What can't be read keeps nobody from looking at all else, and stays.
    let cache = bench.dir.path().join("cache");
    let unread = ["json", "erofs"].map(|suffix| cache.join(format!("{}.{suffix}", "0".repeat(64))));
    unread.iter().for_each(|path| fs::create_dir(path).unwrap());
    let (count, wrong) = bench.layers.verify();
    let (damaged, left): (Vec<_>, Vec<_>) = wrong.into_iter().partition(Result::is_ok);
    let mut damaged: Vec<_> = damaged.into_iter().map(Result::unwrap).collect();
    damaged.sort();
    let mut expected = vec![base.layer.path.clone(), image.path.clone()];
    expected.sort();
    assert_eq!((count, damaged, left.len()), (3, expected, 1));
    assert!(left[0].as_ref().unwrap_err().to_string().contains(unread[0].to_str().unwrap()), "{left:?}");
    assert_eq!(fs::read_dir(cache).unwrap().count(), 3, "these two and their lock");
}

/// What rots leaves no trace in the file system: as if the file had been so when it was noted.
#[test]
fn what_rots_is_found_by_its_checksum_and_what_was_only_touched_is_not_built_again() {
    let bench = Bench::new();
    let packages = [bench.workshop.base()];
    let base = bench.base();
    let (path, note) = (&base.layer.path, base.layer.path.with_extension("json"));
    let bytes = fs::read(path).unwrap();
    let again = || {
        let steps = Mutex::new(0);
        // Of another build: one looks once.
        let layers = Layers::new(&bench.dir.path().join("cache"), Path::new(PROGRAM), EPOCH, 2).unwrap();
        assert_eq!(layers.base(&packages, &|_| *steps.lock().unwrap() += 1).unwrap(), base);
        assert!(fs::read(path).unwrap() == bytes);
        let steps = *steps.lock().unwrap();
        steps > 0
    };
    assert!(!again(), "nothing happened to it");
    for at in [0, 5000, bytes.len() - 1] {
        let mut rotten = bytes.clone();
        rotten[at] ^= 4;
        fs::write(path, rotten).unwrap();
        let mut noted: serde_json::Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
        noted["stamp"] = serde_json::to_value(Stamp::from(fs::metadata(path).unwrap())).unwrap();
        fs::write(&note, noted.to_string()).unwrap();
        assert!(again(), "byte {at}");
    }
    fs::File::options().write(true).open(path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    assert!(!again(), "all of it was hashed");
    fs::remove_file(base.layer.leaves()).unwrap();
    assert!(!again(), "the hashes of its blocks can be made of it");
}

/// As when somebody made room by hand, and the build that made it anew was killed.
#[test]
fn a_base_whose_tree_is_gone_is_no_base_until_all_of_it_is_there_again() {
    let bench = Bench::new();
    let packages = [bench.workshop.base()];
    let base = bench.layers.base(&packages, &|_| ()).unwrap();
    let tree = base.layer.path.with_extension("tree");
    fs::remove_dir_all(&tree).unwrap();
    let broken = Package { deb: bench.dir.path().join("gone.deb"), ..packages[0].clone() };
    bench.layers.base(&[broken], &|_| ()).unwrap_err();
    fs::create_dir_all(tree.join("usr")).unwrap();
    assert_eq!(bench.layers.base(&packages, &|_| ()).unwrap(), base);
    assert!(tree.join("usr/bin/dpkg").exists());
}

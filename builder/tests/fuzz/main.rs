//! The readers of strangers' bytes against a corpus, and against what chance makes of it. In `ci/test` the corpus is
//! replayed, with some changes to each file; `ci/soak fuzz` changes it for minutes. A reader that panics, or takes
//! longer than any honest file of that size, fails the test, which keeps the bytes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod mutate;
mod seal;
mod targets;

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use targets::{Place, TARGETS, Target};

/// How long each reader is tried in `ci/test`, beside the corpus itself.
const QUICK: Duration = Duration::from_secs(1);
/// By the environment: how long each reader is tried, in seconds; and of which number the changes are drawn.
const SECONDS: &str = "RACKSTICK_FUZZ_SECONDS";
const SEED: (&str, u64) = ("RACKSTICK_SEED", 4);
/// No file of the corpus takes a hundredth of it, also on a busy machine.
const SLOW: Duration = Duration::from_secs(60);

#[test]
fn no_reader_fails_of_the_corpus_or_of_what_chance_makes_of_it() {
    for target in &TARGETS {
        try_for(target, QUICK);
    }
}

#[test]
#[ignore = "takes minutes: run by `ci/soak fuzz`"]
fn no_reader_fails_in_minutes() {
    let seconds = env::var(SECONDS).map_or(180, |text| text.parse().expect("seconds are a number"));
    for target in &TARGETS {
        try_for(target, Duration::from_secs(seconds));
    }
}

/// What a container image's digests guard is read all the same when somebody makes them fit.
#[test]
fn a_changed_container_image_with_right_digests_gets_past_them() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    let recipe = "from = { oci = 'input' }\ncommand = ['/app']\n";
    let [saved, layout] = corpus("oci").try_into().expect("one of `docker save` and a layout");
    for (of, bytes, from, to) in
        [("a layer", saved, "#!/bin/sh", "#!/bin/ss"), ("the configuration", layout, "\"config\":{}", "\"confik\":{}")]
    {
        let at = find(&bytes, from).unwrap();
        let mut changed = bytes;
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&place.file, &changed).unwrap();
        assert!(!place.build(recipe), "{of} is changed, which nobody sees");
        seal::oci(&mut changed);
        assert!(find(&changed, to).is_some());
        fs::write(&place.file, &changed).unwrap();
        assert!(place.build(recipe), "{of} is refused");
    }
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

fn try_for(target: &Target, time: Duration) {
    let seed = env::var(SEED.0).map_or(SEED.1, |text| text.parse().expect("the seed is a number"));
    let mut random = fastrand::Rng::with_seed(seed);
    let corpus = corpus(target.name);
    assert!(!corpus.is_empty(), "{} has no corpus", target.name);
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path());
    for bytes in &corpus {
        let mut sealed = bytes.clone();
        (target.seal)(&mut sealed);
        assert!(sealed == *bytes, "a sum of {} is not computed as by who wrote the file", target.name);
        read(target, &place, bytes);
    }
    let (end, mut count) = (Instant::now() + time, 0);
    while Instant::now() < end {
        let mut changed = mutate::change(&mut random, &corpus);
        if random.bool() {
            (target.seal)(&mut changed);
        }
        read(target, &place, &changed);
        count += 1;
    }
    println!("{}: {} files and {count} changed ones, of seed {seed}", target.name, corpus.len());
}

fn read(target: &Target, place: &Place, bytes: &[u8]) {
    fs::write(&place.file, bytes).unwrap();
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (target.read)(place)));
    if result.is_err() || began.elapsed() > SLOW {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        fs::write(&kept, bytes).unwrap();
        let what = if result.is_err() { "panics" } else { "takes too long" };
        panic!("{} {what} of {}: mend it, and put the file into the corpus", target.name, kept.display());
    }
}

/// The files of a reader: recipes and locks are the project's own, too.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut folders = vec![(tests.join("fuzz/corpus").join(name), None)];
    let recipes = tests.join("../../recipes");
    match name {
        "recipe" => folders.extend([(recipes, Some("toml")), (tests.join("../../tests/bad-recipes"), Some("toml"))]),
        "image" => folders
            .extend([recipes.join("images"), tests.join("../../tests/bad-recipes/images")].map(|f| (f, Some("toml")))),
        "lock" => folders.push((recipes, Some("lock"))),
        _ => {}
    }
    let own = if name == "erofs" { Some([false, true].map(targets::layer)) } else { None };
    let mut files: Vec<PathBuf> = Vec::new();
    for (folder, ending) in folders.into_iter().filter(|(folder, _)| folder.is_dir()) {
        let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        files.extend(
            found.filter(|path| ending.is_none_or(|ending| path.extension().is_some_and(|found| found == ending))),
        );
    }
    files.sort();
    files.into_iter().map(|path| fs::read(path).unwrap()).chain(own.into_iter().flatten()).collect()
}

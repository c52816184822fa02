//! Ring 3: a build of what is there already writes nothing, and one of anything else makes all of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use rackstick_tests::{place, tool, wait};
use rustix::process::{Pid, Signal, kill_process};

/// How long a build may take to begin.
const LIMIT: Duration = Duration::from_secs(60);

/// All that a build of the bare rack gives.
const FILES: [&str; 5] = ["bmap", "img", "json", "provenance.json", "spdx.json"];

/// A recipe, a folder for what is built of it, and the programs to do so, all of which may be changed.
struct Bench {
    folder: PathBuf,
    recipe: PathBuf,
}

impl Bench {
    fn new(test: &str) -> Self {
        let folder = place::test_folder(test);
        let recipes = place::clone().join("tests/recipes");
        for name in ["bare.toml", "bare.lock"] {
            fs::copy(recipes.join(name), folder.join(name)).unwrap();
        }
        let program = PathBuf::from(tool::rackstick().get_program());
        for name in ["rackstick", "rackstick-host", "rackstick-vmm", "rackstick-guest"] {
            fs::copy(program.with_file_name(name), folder.join(name)).unwrap();
        }
        let recipe = folder.join("bare.toml");
        Self { folder, recipe }
    }

    fn build(&self) -> Command {
        let mut command = Command::new(self.folder.join("rackstick"));
        command.arg("build").arg(&self.recipe).arg("-o").arg(self.folder.join("out")).arg("--json");
        command
    }

    /// Builds; whether there was nothing to do.
    fn is_up_to_date(&self, options: &[&str]) -> bool {
        was_up_to_date(&tool::output(self.build().args(options)))
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("out/bare_1.{suffix}"))
    }

    /// Inode and time of modification of every file in the output folder.
    fn written(&self) -> BTreeMap<PathBuf, (u64, SystemTime)> {
        let entries = fs::read_dir(self.folder.join("out")).unwrap().map(|entry| entry.unwrap());
        let state = |entry: fs::DirEntry| {
            let metadata = entry.metadata().unwrap();
            (entry.path(), (metadata.ino(), metadata.modified().unwrap()))
        };
        entries.map(state).collect()
    }
}

fn was_up_to_date(said: &str) -> bool {
    let said: serde_json::Value = serde_json::from_str(said).unwrap();
    said["result"]["up_to_date"].as_bool().unwrap()
}

fn sums(paths: &[PathBuf]) -> String {
    tool::ask("sha256sum", paths)
}

/// Another byte of the same file, which keeps its size and its time of modification.
fn change_secretly(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let (at, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(modified).unwrap();
}

/// Takes the last tenth of it away, or a MiB of a large one.
fn cut(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - (length / 10).min(1 << 20)).unwrap();
}

fn touch(path: &Path) {
    File::options().write(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
}

fn replace_with_a_copy(path: &Path) {
    let copy = path.with_extension("copy");
    tool::ask("cp", ["--archive", "--sparse=always"].map(AsRef::as_ref).iter().chain(&[path, &copy]));
    fs::rename(copy, path).unwrap();
}

#[test]
fn nothing_is_written_if_nothing_changed_and_all_if_any_file_did() {
    let bench = Bench::new("rebuild-files");
    assert!(!bench.is_up_to_date(&[]));
    let files = FILES.map(|suffix| bench.file(suffix));
    let (bytes, first) = (sums(&files), bench.written());
    assert_eq!(first.keys().cloned().collect::<Vec<_>>(), files);
    for _ in 0..2 {
        assert!(bench.is_up_to_date(&[]));
        assert_eq!(bench.written(), first, "nothing was written");
    }

    type Change = fn(&Path);
    let changes: [(&str, &str, Change); 9] = [
        ("img", "changed", change_secretly),
        ("img", "touched", touch),
        ("img", "deleted", |path| fs::remove_file(path).unwrap()),
        ("img", "emptied", |path| drop(File::create(path).unwrap())),
        ("img", "cut", cut),
        ("bmap", "changed", change_secretly),
        ("json", "cut", cut),
        ("spdx.json", "deleted", |path| fs::remove_file(path).unwrap()),
        ("provenance.json", "copied", replace_with_a_copy),
    ];
    for (suffix, how, change) in changes {
        let before = bench.written();
        change(&bench.file(suffix));
        assert!(!bench.is_up_to_date(&[]), "{suffix} was {how}");
        let after = bench.written();
        for file in &files {
            assert_ne!(after[file], before[file], "{suffix} was {how}: {} is written again", file.display());
        }
        assert!(bench.is_up_to_date(&[]), "{suffix} was {how}, and made good");
    }
    assert_eq!(sums(&files), bytes, "it is the same image as ever");
}

#[test]
fn a_second_build_of_the_same_image_hears_of_the_first_at_once_and_takes_what_it_made() {
    let bench = Bench::new("rebuild-second");
    let start = || bench.build().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = start();
    let pid = Pid::from_child(&first);
    wait::until("the first build's place", LIMIT, || bench.file("img.partial").exists().then_some(()));
    // It stands still, so that the second comes before its end.
    kill_process(pid, Signal::STOP).unwrap();
    let mut second = start();
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines().map(Result::unwrap);
    let image = bench.file("img").display().to_string();
    let said = lines.find(|line| line.starts_with("waiting for another build"));
    kill_process(pid, Signal::CONT).unwrap();
    assert!(said.as_ref().is_some_and(|said| said.ends_with(&image)), "{said:?}");
    let [first, second] = [first, second].map(|build| {
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        was_up_to_date(&String::from_utf8(output.stdout).unwrap())
    });
    assert_eq!((first, second), (false, true));
    assert!(!bench.file("img.partial").exists());
}

#[test]
fn another_program_recipe_or_option_is_built() {
    let bench = Bench::new("rebuild-inputs");
    assert!(!bench.is_up_to_date(&[]));
    let append = |name: &str| {
        let path = bench.folder.join(name);
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"# more\n");
        fs::write(path, text).unwrap();
    };
    // What is behind an ELF file's end is not run, but it goes into the image.
    for name in ["rackstick-vmm", "rackstick-host", "rackstick", "bare.toml", "bare.lock"] {
        append(name);
        assert!(!bench.is_up_to_date(&[]), "{name} is another one");
        assert!(bench.is_up_to_date(&[]), "{name} is the same again");
    }
    assert!(!bench.is_up_to_date(&["--zst"]));
    assert!(bench.file("img.zst").exists() && bench.is_up_to_date(&["--zst"]));
    assert!(!bench.is_up_to_date(&[]));
    assert!(!bench.file("img.zst").exists());

    fs::rename(bench.folder.join("out"), bench.folder.join("moved")).unwrap();
    assert!(!bench.is_up_to_date(&[]), "it is no longer there");
}

//! Ring 3: builds that are killed, builds at the same time, a store that is tidied up, packages that archives dropped:
//! the image stays the same.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rackstick_tests::{
    image::Image,
    place,
    recipe::Recipes,
    tool::{self, Said},
    wait,
};
use tempfile::TempDir;

/// How long a build may take to come to a certain point.
const POINT_LIMIT: Duration = Duration::from_secs(300);

/// A mirror on a port where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1/debian";

fn build(cache: &Path, out: &Path) -> Command {
    let mut command = tool::rackstick();
    command
        .arg("build")
        .arg(place::clone().join("tests/recipes/pair.toml"))
        .arg("-o")
        .arg(out)
        .args(["--mirror", NOBODY]);
    command.env("RACKSTICK_CACHE", cache);
    command
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn assert_same(image: &Image, pair: &Image) {
    let said = tool::run(Command::new("cmp").args([&image.path, &pair.path]));
    assert!(said.success, "{}{}", said.stdout, said.stderr);
    assert_eq!(image.manifest, pair.manifest);
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn out() -> TempDir {
    tempfile::tempdir_in(place::rig()).unwrap()
}

fn store(cache: &Path, arguments: &[&str]) -> Said {
    tool::run(tool::rackstick().arg("store").args(arguments).env("RACKSTICK_CACHE", cache))
}

#[test]
fn a_build_that_was_killed_at_any_moment_is_made_good_by_the_next_one() {
    let pair = Image::pair();
    let (cache, out) = (place::caches_without_layers(), out());
    let layers = cache.path().join("layers");
    let any = |folder: &Path, suffix: &str| names(folder).iter().any(|name| name.ends_with(suffix));
    let half_written = || fs::metadata(out.path().join("pair_1.img.partial")).is_ok_and(|partial| partial.len() > 0);
    // While the base is made, while an image is, and while the disk image is written.
    let moments: [(&str, &dyn Fn() -> bool); 3] = [
        ("a base's tree", &|| any(&layers, ".tree")),
        ("an image's folder", &|| any(&layers, ".work")),
        ("half an image", &half_written),
    ];
    for (what, reached) in &moments {
        let mut builder = start(&mut build(cache.path(), out.path()));
        wait::until(what, POINT_LIMIT, || {
            assert!(builder.try_wait().unwrap().is_none() || reached(), "the build ended before there was {what}");
            reached().then_some(())
        });
        builder.kill().unwrap();
        builder.wait().unwrap();
    }
    let scratch = names(cache.path()).into_iter().filter(|name| name.starts_with("build-")).count();
    assert_eq!(scratch, moments.len(), "each left its folder");

    tool::output(&mut build(cache.path(), out.path()));
    assert_same(&Image::only_one_in(out.path()), pair);
    let mut left: Vec<String> = names(out.path());
    left.sort();
    let all = ["bmap", "img", "json", "provenance.json", "spdx.json"];
    assert_eq!(left, all.map(|suffix| format!("pair_1.{suffix}")), "nothing half-made stays");
    let said = store(cache.path(), &["gc", "--older-than", "9999d"]);
    assert!(said.success && said.stdout.contains("removed 3 leftovers of killed builds"), "{said:?}");
    let left = [names(cache.path()), names(&layers)].concat();
    let useless = |name: &String| {
        [".work", ".again", ".partial"].iter().any(|end| name.ends_with(end)) || name.starts_with("build-")
    };
    assert!(!left.iter().any(useless), "{left:?}");
}

#[test]
fn builds_at_the_same_time_give_the_same_image_and_a_store_that_is_tidied_up_meanwhile_takes_nothing_from_them() {
    let pair = Image::pair();
    let cache = place::caches_without_layers();
    let outs = [out(), out()];
    let mut builders = outs.each_ref().map(|out| start(&mut build(cache.path(), out.path())));
    let layers = cache.path().join("layers");
    wait::until("a base's tree", POINT_LIMIT, || (!names(&layers).is_empty()).then_some(()));
    // Waits for both.
    let said = store(cache.path(), &["gc", "--older-than", "9999d"]);
    assert!(
        said.success && said.stderr.contains("waiting for the builds") && said.stdout == "nothing to remove\n",
        "{said:?}"
    );
    for (builder, out) in builders.iter_mut().zip(&outs) {
        assert!(builder.wait().unwrap().success());
        assert_same(&Image::only_one_in(out.path()), pair);
    }
}

/// A store of its own with this user's packages, which may be spoilt.
fn copy_of_the_store() -> TempDir {
    let real = place::caches_without_layers();
    let copy = tempfile::Builder::new().prefix("cache-").tempdir_in(place::rig()).unwrap();
    let from: PathBuf = real.path().join("store/.");
    fs::create_dir(copy.path().join("store")).unwrap();
    tool::ask(
        "cp",
        ["-r".as_ref(), "--reflink=auto".as_ref(), from.as_os_str(), copy.path().join("store").as_os_str()],
    );
    copy
}

fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_store_keeps_what_a_recipe_needs_and_mends_what_was_damaged() {
    let pair = Image::pair();
    let (cache, out) = (copy_of_the_store(), out());
    let recipe = place::clone().join("tests/recipes/pair.toml");
    let files = cache.path().join("store/sha256");
    fs::write(files.join("f".repeat(64)), "of no lock").unwrap();
    tool::output(&mut build(cache.path(), out.path()));
    let layers = || names(&cache.path().join("layers")).into_iter().filter(|name| name.ends_with(".erofs"));
    let built = layers().count();
    let pretended = store(cache.path(), &["gc", "--older-than", "0", "--dry-run"]).stdout;
    assert!(pretended.starts_with("would remove ") && pretended.contains(" 6 layers"), "{pretended}");
    let said = store(cache.path(), &["gc", "--older-than", "0", "--keep", recipe.to_str().unwrap()]);
    assert!(said.success && said.stdout.starts_with("removed "), "{said:?}");
    assert_eq!(layers().count(), built, "base, kernel and two of each image stay");
    assert_eq!(names(&files).len(), 130, "the packages of the lock");
    assert_eq!(store(cache.path(), &["verify"]).stdout, "130 packages, 6 layers and 2 parts are what they were\n");

    // Layers are built again by themselves.
    layers().for_each(|name| flip_a_byte(&cache.path().join("layers").join(name)));
    tool::output(&mut build(cache.path(), out.path()));
    assert_same(&Image::only_one_in(out.path()), pair);

    // An image that is up to date keeps what it was made of, though nothing of that is read.
    tool::ask(
        "find",
        [
            cache.path().to_str().unwrap(),
            "-not",
            "-path",
            "*.tree/*",
            "-exec",
            "touch",
            "--date=60 days ago",
            "{}",
            "+",
        ],
    );
    assert!(tool::output(&mut build(cache.path(), out.path())).contains("up to date"));
    assert_eq!(store(cache.path(), &["gc"]).stdout, "nothing to remove\n");
    assert_eq!((layers().count(), names(&files).len()), (built, 130));

    let [_, _, nginx] = nginx_light();
    flip_a_byte(&files.join(&nginx));
    let said = store(cache.path(), &["verify"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stdout.contains(&nginx) && said.stdout.contains("of package nginx-light 1."), "{said:?}");
    assert!(!files.join(&nginx).exists());
    assert!(store(cache.path(), &["verify"]).success);
}

#[test]
fn a_changed_file_changes_one_small_layer_and_needs_no_package() {
    let (recipes, cache, out) = (Recipes::of_tests(), copy_of_the_store(), out());
    let build = || {
        let mut command = tool::rackstick();
        command.arg("build").arg(recipes.path("pair.toml")).arg("-o").arg(out.path()).args(["--mirror", NOBODY]);
        tool::run(command.env("RACKSTICK_CACHE", cache.path()))
    };
    let built = || {
        let said = build();
        assert!(said.success, "{said:?}");
        Image::only_one_in(out.path())
    };
    let layers = |image: &Image| -> BTreeMap<String, String> {
        let all = image.manifest.images.values().flat_map(|image| &image.layers);
        all.map(|layer| (layer.label.clone(), layer.digest.to_string())).collect()
    };
    let before = layers(&built());
    let page = recipes.path("images/web/index.html");
    fs::write(&page, fs::read_to_string(&page).unwrap() + "<!-- another -->\n").unwrap();
    let (packages, away) = (cache.path().join("store/sha256"), cache.path().join("away"));
    fs::rename(&packages, &away).unwrap();
    let image = built();
    let after = layers(&image);
    let changed: Vec<&str> =
        before.keys().filter(|label| before[*label] != after[*label]).map(String::as_str).collect();
    assert_eq!((changed, before.len()), (vec!["web"], after.len()));
    let web = image.manifest.images["web"].layers.iter().find(|layer| layer.label == "web").unwrap();
    assert!(web.size < 1 << 20, "{} bytes", web.size);
    assert!(tool::run(tool::rackstick().arg("verify").arg(&image.path)).success);

    // A layer of packages that is not what it was is made of them again.
    let files = cache.path().join("layers").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut files = files.filter(|path| path.extension().is_some_and(|end| end == "erofs"));
    flip_a_byte(&files.find(|path| fs::metadata(path).unwrap().len() > 1 << 20).unwrap());
    fs::remove_file(&image.path).unwrap();
    let said = build();
    assert!(!said.success && said.stderr.contains("can't be fetched"), "{said:?}");
    fs::remove_dir_all(&packages).unwrap();
    fs::rename(&away, &packages).unwrap();
    assert_eq!(layers(&built()), after);
}

/// Archive, path and hash of a package in the lock.
fn nginx_light() -> [String; 3] {
    let lock = fs::read_to_string(place::clone().join("tests/recipes/pair.lock")).unwrap();
    let entry = lock.split(".packages.nginx-light]").nth(1).unwrap();
    ["archive", "path", "sha256"].map(|key| {
        let value = entry.split(&format!("{key} = \"")).nth(1).unwrap();
        value.split('"').next().unwrap().to_owned()
    })
}

#[test]
fn a_rack_is_built_from_vendored_packages_with_an_empty_store_and_without_a_mirror() {
    let pair = Image::pair();
    let (folder, recipe) = (out(), place::clone().join("tests/recipes/pair.toml"));
    let vendor = folder.path().join("vendor");
    let fill = || tool::output(tool::rackstick().arg("vendor").arg(&vendor).arg(&recipe).args(["--mirror", NOBODY]));
    let said = fill();
    assert!(said.contains("130 packages, of which 130 are new"), "{said}");
    let [archive, path, _] = nginx_light();
    flip_a_byte(&vendor.join(archive).join(path));
    let said = fill();
    assert!(said.contains("130 packages, of which 1 are new"), "{said}");

    let url = format!("file://{}", vendor.join("debian").display());
    for mirror in [vendor.to_str().unwrap(), &url] {
        let (cache, out) = (tempfile::tempdir_in(place::rig()).unwrap(), out());
        let mut command = tool::rackstick();
        command.arg("build").arg(&recipe).arg("-o").arg(out.path()).args(["--mirror", mirror]);
        tool::output(command.env("RACKSTICK_CACHE", cache.path()));
        assert_same(&Image::only_one_in(out.path()), pair);
    }
}

/// Needs the network: the archive is asked what it has instead.
#[test]
fn a_package_that_the_archive_dropped_is_named_with_what_there_is_instead_and_what_to_do() {
    let recipes = Recipes::of_tests();
    let [_, path, hash] = nginx_light();
    recipes.edit("pair.lock", &hash, &"0".repeat(64)).edit(
        "pair.lock",
        &path,
        "pool/main/n/nginx/nginx-light_0.1_amd64.deb",
    );
    let (cache, out) = (copy_of_the_store(), out());
    let mut command = tool::rackstick();
    command.arg("build").arg(recipes.path("pair.toml")).arg("-o").arg(out.path()).env("RACKSTICK_CACHE", cache.path());
    let said = tool::run(&mut command);
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in [
        "no mirror has these packages of the lock any more:\n  nginx-light ",
        "nginx-light_0.1_amd64.deb); the archive now has ",
        "`rackstick lock --update`",
        "`rackstick vendor` filled",
        "a snapshot of the archive from 20",
    ] {
        assert!(said.stderr.contains(part), "no {part}: {}", said.stderr);
    }
}

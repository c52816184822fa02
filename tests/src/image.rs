//! Images built by `rackstick build`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Instant,
};

use rackstick_image::manifest::Manifest;

use crate::{place, tool};

/// A disk image with its manifest beside it.
#[derive(Debug, Clone)]
pub struct Image {
    /// The raw disk.
    pub path: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
}

impl Image {
    /// The image at `path`.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let beside = path.with_extension("json");
        let bytes = fs::read(&beside).unwrap_or_else(|error| panic!("can't read {}: {error}", beside.display()));
        let manifest = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", beside.display()));
        Self { path, manifest }
    }

    /// `recipes/lab.toml` as it stands in the clone, built once per test program.
    pub fn lab() -> &'static Self {
        static LAB: OnceLock<Image> = OnceLock::new();
        LAB.get_or_init(|| Self::build("recipes/lab.toml", "lab", &[]))
    }

    /// A rack with a name server and a web server, for all that needs no more of one; built once per test program.
    pub fn pair() -> &'static Self {
        static PAIR: OnceLock<Image> = OnceLock::new();
        PAIR.get_or_init(|| Self::build("tests/recipes/pair.toml", "pair", &[]))
    }

    /// The rack of the matrix, with one small guest that serves a page; built once per test program.
    pub fn matrix() -> &'static Self {
        static MATRIX: OnceLock<Image> = OnceLock::new();
        MATRIX.get_or_init(|| Self::build("tests/recipes/matrix.toml", "matrix", &[]))
    }

    /// [`Image::matrix`] for disks with sectors of 4096 bytes.
    pub fn matrix_4kn() -> &'static Self {
        static MATRIX: OnceLock<Image> = OnceLock::new();
        MATRIX.get_or_init(|| Self::build("tests/recipes/matrix.toml", "matrix-4kn", &["--sector-size", "4096"]))
    }

    /// A rack without guests, built once per test program.
    pub fn bare() -> &'static Self {
        static BARE: OnceLock<Image> = OnceLock::new();
        BARE.get_or_init(|| Self::build("tests/recipes/bare.toml", "bare", &[]))
    }

    /// `recipes/spare-pc.toml` as it stands in the clone, built once per test program.
    pub fn spare_pc() -> &'static Self {
        static SPARE_PC: OnceLock<Image> = OnceLock::new();
        SPARE_PC.get_or_init(|| Self::build("recipes/spare-pc.toml", "spare-pc", &[]))
    }

    /// A rack with a guest on the LAN and one behind it, built once per test program.
    pub fn networks() -> &'static Self {
        static NETWORKS: OnceLock<Image> = OnceLock::new();
        NETWORKS.get_or_init(|| Self::build("tests/recipes/network.toml", "networks", &[]))
    }

    /// A rack whose one image sets all that a recipe can, built once per test program.
    pub fn settings() -> &'static Self {
        static SETTINGS: OnceLock<Image> = OnceLock::new();
        SETTINGS.get_or_init(|| Self::build("tests/recipes/settings.toml", "settings", &[]))
    }

    /// Builds a recipe of the clone into `<target>/rig/images/<name>/`.
    fn build(recipe: &str, name: &str, arguments: &[&str]) -> Self {
        let out = place::test_folder(&format!("images/{name}"));
        let started = Instant::now();
        let recipe = place::clone().join(recipe);
        tool::output(tool::rackstick().arg("build").arg(recipe).arg("-o").arg(&out).args(arguments));
        println!("{name} built in {:.1} s", started.elapsed().as_secs_f64());
        Self::only_one_in(&out)
    }

    /// The only image in a folder.
    pub fn only_one_in(folder: &Path) -> Self {
        let images = images_in(folder);
        let [image] = &images[..] else { panic!("one image must lie in {}, not {images:?}", folder.display()) };
        Self::open(image)
    }

    /// A copy in another folder, sparse where the original is.
    pub fn copy_to(&self, folder: &Path) -> Self {
        let name = self.path.file_name().expect("an image has a name");
        let copy = folder.join(name);
        tool::ask("cp", [Path::new("--sparse=always"), Path::new("--reflink=auto"), &self.path, &copy]);
        tool::ask("cp", [self.path.with_extension("json"), copy.with_extension("json")]);
        Self { path: copy, manifest: self.manifest.clone() }
    }
}

/// Everything in a folder that bears the name of a finished image.
pub fn images_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("can't read {}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a folder can be read to its end").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "img")).collect()
}

//! An image recipe in place of a rack recipe: both are TOML files, and only rack recipes are checked, with the image
//! recipes that they name.

use std::{
    ffi::OsString,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{Spanned, de::DeTable};

use super::{
    load,
    names::shown,
    reader::{Shape, value},
    shapes,
};

/// Most files that are looked at for one that names the image recipe: a folder may hold anything.
const LOOKED_AT_MAX: usize = 100;

/// What such a file is.
pub(super) const MESSAGE: &str = "this is an image recipe, not a rack recipe";

/// The first key by which a file is seen to be an image recipe.
pub(super) fn key_of_an_image_recipe(root: &DeTable<'_>) -> Option<Range<usize>> {
    let is_of = |shape: &Shape, key: &str| shape.keys.iter().any(|known| known.name == key);
    let of_racks_alone = |key: &str| is_of(&shapes::RECIPE, key) && !is_of(&shapes::IMAGE, key);
    if root.keys().any(|key| of_racks_alone(key.get_ref())) {
        return None;
    }
    root.keys().filter(|key| is_of(&shapes::IMAGE, key.get_ref())).map(Spanned::span).min_by_key(|span| span.start)
}

/// What to do instead. The rack recipe that names the image recipe usually lies one folder up.
pub(super) fn hint(image: &Path) -> String {
    let folder = image.parent().unwrap_or(Path::new(""));
    let above = folder.parent().unwrap_or(Path::new(".."));
    let what = "it is checked with the rack recipe whose guests boot it";
    match [above, folder].into_iter().find_map(|folder| rack_recipe(folder, image)) {
        Some(rack) => format!("{what}: {}", shown(&rack.to_string_lossy())),
        None => format!("{what}; none of those beside it or one folder up names it"),
    }
}

/// The first recipe in a folder with a guest that boots this image. What can't be read is none.
fn rack_recipe(folder: &Path, image: &Path) -> Option<PathBuf> {
    let image = image.canonicalize().ok()?;
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = fs::read_dir(listed).ok()?.take(LOOKED_AT_MAX);
    let mut names: Vec<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    let paths = names.into_iter().map(|name| folder.join(name));
    let mut recipes = paths.filter(|path| path.extension().is_some_and(|suffix| suffix == "toml") && path.is_file());
    recipes.find(|path| {
        images(path).into_iter().any(|named| folder.join(named).canonicalize().is_ok_and(|named| named == image))
    })
}

/// The image recipes that the guests of a rack recipe name.
fn images(path: &Path) -> Vec<String> {
    let Some(text) = load::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else { return Vec::new() };
    let Ok(root) = DeTable::parse(&text) else { return Vec::new() };
    let guests = value(root.get_ref(), &["guests"]).and_then(|guests| guests.get_ref().as_table());
    let guests = guests.into_iter().flat_map(DeTable::values).filter_map(|guest| guest.get_ref().as_table());
    guests.filter_map(|guest| Some(value(guest, &["image"])?.get_ref().as_str()?.to_owned())).collect()
}

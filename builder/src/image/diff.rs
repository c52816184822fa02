//! What is different between two images, as text for people. `-` and `+` stand before what only the first or only the
//! second has, `~` before what both have and differs.

use std::collections::{BTreeMap, BTreeSet};

use rackstick::layers::compare::{Difference, How, Pair, Part, same};
use rackstick_image::{
    erofs::read::{Inode, Kind},
    manifest::{self, Blob, Image, Manifest},
    view::{ReadError, View},
};

use super::{
    describe,
    open::{self, Fault, ImageError, Opened},
    packages::{self, Packages},
    secrets::Held,
    text::{count, printable, size},
};

/// So many files of a layer are listed, if not all are asked for.
const LISTED: usize = 40;

/// All differences as text; empty if there are none.
pub fn diff(a: &Opened<'_>, b: &Opened<'_>, all: bool) -> Result<String, ImageError> {
    let mut diff = Diff { a, b, out: String::new(), listed: if all { usize::MAX } else { LISTED } };
    diff.generation();
    diff.secrets()?;
    diff.sizes()?;
    diff.host()?;
    diff.packages()?;
    diff.layers()?;
    if diff.out.is_empty() {
        let (left, right) = (a.disk.view()?, b.disk.view()?);
        let same = same(&left, &right).map_err(|error| a.disk.damaged(Fault::read("disk", &left, &error)))?;
        if !same {
            diff.title(
                "the disks have different bytes, but in nothing that is compared: tables of file systems, their times",
            );
        }
    }
    Ok(diff.out)
}

struct Diff<'d, 'a> {
    a: &'d Opened<'a>,
    b: &'d Opened<'a>,
    out: String,
    listed: usize,
}

impl<'a> Diff<'_, 'a> {
    fn title(&mut self, text: &str) {
        self.out.push_str(&format!("{}\n", printable(text)));
    }

    fn line(&mut self, mark: char, text: &str) {
        self.out.push_str(&format!("  {mark} {}\n", printable(text)));
    }

    /// A title and lines below it, unless there are none.
    fn list(&mut self, title: &str, lines: Vec<(char, String)>) {
        if !lines.is_empty() {
            self.title(title);
            lines.iter().for_each(|(mark, text)| self.line(*mark, text));
        }
    }

    /// What the manifests say of rack, networks and guests.
    fn generation(&mut self) {
        let (a, b) = (&self.a.host.manifest, &self.b.host.manifest);
        let rack = |manifest: &Manifest| {
            let Manifest { rack, version, domain, .. } = manifest;
            BTreeMap::from([("name", rack.clone()), ("version", version.clone()), ("domain", domain.clone())])
        };
        let networks = |manifest: &Manifest| -> BTreeMap<String, String> {
            manifest.networks.iter().map(|(name, network)| (name.clone(), describe::of_network(network))).collect()
        };
        let order = |manifest: &Manifest| {
            let names: Vec<&str> = manifest.guests.iter().map(|guest| guest.name.as_str()).collect();
            BTreeMap::from([("start in the order", names.join(", "))])
        };
        let guests = |manifest: &Manifest| -> BTreeMap<String, BTreeSet<String>> {
            let guests = manifest.guests.iter();
            guests
                .map(|guest| (guest.name.clone(), describe::of_guest(manifest, guest).into_iter().collect()))
                .collect()
        };
        let boots = |manifest: &Manifest| -> BTreeMap<String, String> {
            let images = manifest.images.iter();
            images
                .map(|(name, image)| {
                    let starts =
                        image.disk.as_ref().map_or_else(|| image.init.join(" "), |disk| disk.blob.label.clone());
                    (name.clone(), format!("{starts} with `{}`", image.cmdline))
                })
                .collect()
        };
        let lists = [
            ("rack", changes(&rack(a), &rack(b))),
            ("networks", changes(&networks(a), &networks(b))),
            ("guests", changes(&order(a), &order(b))),
            ("images boot", changes(&boots(a), &boots(b))),
        ];
        let (a, b) = (guests(a), guests(b));
        lists.into_iter().for_each(|(title, lines)| self.list(title, lines));
        for name in names(&a, &b) {
            let none = BTreeSet::new();
            let (was, is) = (a.get(name).unwrap_or(&none), b.get(name).unwrap_or(&none));
            let gone = was.difference(is).map(|part| ('-', part.clone()));
            let new = is.difference(was).map(|part| ('+', part.clone()));
            self.list(&format!("guest {name}"), gone.chain(new).collect());
        }
    }

    /// Which secrets' values are in only one image, or are others: by name, never what they are.
    fn secrets(&mut self) -> Result<(), ImageError> {
        let of = |opened: &Opened<'_>| match Held::of(&opened.parts, Some(&opened.fs)) {
            Held { faults, .. } if !faults.is_empty() => Err(opened.disk.damaged(faults[0].clone())),
            held => Ok(held.values()),
        };
        let (a, b) = (of(self.a)?, of(self.b)?);
        let change = |key: &(String, String)| {
            let name = format!("{}/{}", key.0, key.1);
            match (a.get(key), b.get(key)) {
                (Some(was), Some(is)) => (was != is).then(|| ('~', format!("{name} has another value"))),
                (Some(_), None) => Some(('-', name)),
                (None, _) => Some(('+', name)),
            }
        };
        let lines = names(&a, &b).into_iter().filter_map(change).collect();
        self.list("secrets", lines);
        Ok(())
    }

    fn sizes(&mut self) -> Result<(), ImageError> {
        let of = |opened: &Opened<'_>| -> Result<BTreeMap<&str, String>, ImageError> {
            let blobs = open::blobs(&opened.host.manifest);
            let layers: u64 = blobs.iter().map(|used| used.blob.size).fold(0, u64::saturating_add);
            let image = opened.disk.view()?.length();
            let bytes = |bytes: u64| format!("{} ({bytes} bytes)", size(bytes));
            Ok(BTreeMap::from([
                ("image", bytes(image)),
                ("UKI", bytes(opened.host.file.length())),
                ("layers", bytes(layers)),
                ("sectors", format!("{} bytes", opened.disk.sector)),
            ]))
        };
        let lines = changes(&of(self.a)?, &of(self.b)?);
        self.list("sizes", lines);
        Ok(())
    }

    /// What the UKIs hold.
    fn host(&mut self) -> Result<(), ImageError> {
        let (a, b) = (self.a, self.b);
        let says = |opened: &Opened<'_>| {
            let host = &opened.host;
            BTreeMap::from([("command line", host.cmdline.clone()), ("Linux", host.release.clone())])
        };
        let mut lines = changes(&says(a), &says(b));
        let sections = |opened: &Opened<'a>| -> BTreeMap<String, View<'a>> {
            let host = &opened.host;
            let view = |content: &std::ops::Range<u64>| host.file.part(content.start, content.end - content.start);
            let parts = host.sections.iter().filter(|section| section.name != ".initrd");
            parts.filter_map(|section| Some((section.name.clone(), view(&section.content)?))).collect()
        };
        let failed = |error: ReadError| a.disk.damaged(Fault::read("UKI", &a.host.file, &error));
        lines.extend(files(&sections(a), &sections(b), "section ").map_err(failed)?);
        self.list("host", lines);
        let lines = files(&a.host.initrd, &b.host.initrd, "").map_err(failed)?;
        self.shortened("the host's initrd", lines, 0);
        Ok(())
    }

    fn packages(&mut self) -> Result<(), ImageError> {
        let (a, b) = (&self.a.host.manifest.images, &self.b.host.manifest.images);
        for name in names(a, b) {
            let of = |opened: &Opened<'_>, image: Option<&Image>| {
                image.map_or(Ok(Packages::new()), |image| packages::of(opened, image).map(Option::unwrap_or_default))
            };
            let (was, is) = (of(self.a, a.get(name))?, of(self.b, b.get(name))?);
            let lines = match (a.contains_key(name), b.contains_key(name)) {
                (true, true) => changes(&was, &is),
                (true, false) => vec![('-', format!("all {}", was.len()))],
                (false, _) => vec![('+', format!("all {}", is.len()))],
            };
            self.list(&format!("packages of image {name}"), lines);
        }
        Ok(())
    }

    fn layers(&mut self) -> Result<(), ImageError> {
        let (left, right) = (open::blobs(&self.a.host.manifest), open::blobs(&self.b.host.manifest));
        let by_label = |blobs: &[open::Used<'_>]| -> BTreeMap<String, (Blob, bool)> {
            let there: BTreeSet<&str> = blobs.iter().map(|used| used.blob.label.as_str()).collect();
            let named = blobs.iter().map(|used| {
                let label = used.blob.label.as_str();
                // Where guests have a layer both compressed and plain, the compressed one has its own name.
                let role = if there.contains(role(label)) { label } else { role(label) };
                (role.to_owned(), (used.blob.clone(), used.layer))
            });
            named.collect()
        };
        let (left, right) = (by_label(&left), by_label(&right));
        for role in names(&left, &right) {
            let (was, is) = (left.get(role), right.get(role));
            if was.map(|(blob, _)| blob.digest) == is.map(|(blob, _)| blob.digest) {
                continue;
            }
            let told = |of: Option<&(Blob, bool)>| {
                of.map_or("none".to_owned(), |(blob, _)| {
                    format!("{} ({} bytes) {}", size(blob.size), blob.size, blob.label)
                })
            };
            let title = format!("layer {role}: {} -> {}", told(was), told(is));
            let of = |opened: &Opened<'a>, blob: Option<&(Blob, bool)>| match blob {
                Some((blob, true)) => opened.layer(blob.digest).map(Some),
                _ => Ok(None),
            };
            let (was_layer, is_layer) = (of(self.a, was)?, of(self.b, is)?);
            let compared = Pair { a: was_layer.as_ref(), b: is_layer.as_ref() }.compare();
            let (lines, times) = compared.map_err(|error| {
                let blob = was.or(is).map(|(blob, _)| blob.label.clone()).unwrap_or_default();
                self.a.disk.damaged(Fault::new(format!("layer {blob} of this image or the other"), error.to_string()))
            })?;
            self.title(&title);
            self.shortened("", lines.iter().map(line).collect(), times);
        }
        Ok(())
    }

    /// A list of files of which the first are shown; `times`: how many more differ in nothing but their time.
    fn shortened(&mut self, title: &str, lines: Vec<(char, String)>, times: usize) {
        let number = |mark: char| lines.iter().filter(|(found, _)| *found == mark).count();
        let (gone, new, changed) = (number('-'), number('+'), number('~'));
        let more = lines.len().saturating_sub(self.listed);
        if lines.is_empty() && times == 0 {
            return;
        }
        if !title.is_empty() {
            self.title(title);
        }
        lines.iter().take(self.listed).for_each(|(mark, text)| self.line(*mark, text));
        let mut sum = format!("{} gone, {new} new, {changed} changed", count(gone, "file"));
        if times > 0 {
            sum.push_str(&format!(", {times} with another time only"));
        }
        if more > 0 {
            sum.push_str(&format!("; {more} of them not listed here, but with --all"));
        }
        self.out.push_str(&format!("    {sum}\n"));
    }
}

/// What a file of the manifest is for, whatever its version and whether it is compressed.
fn role(label: &str) -> &str {
    let label = label.strip_suffix(manifest::COMPRESSED).unwrap_or(label);
    if label.starts_with("kernel ") { "kernel" } else { label }
}

/// The keys of both.
fn names<'m, K: Ord, V, W>(a: &'m BTreeMap<K, V>, b: &'m BTreeMap<K, W>) -> BTreeSet<&'m K> {
    a.keys().chain(b.keys()).collect()
}

/// The differences of two lists of words by name.
fn changes<K: Ord + AsRef<str>>(a: &BTreeMap<K, String>, b: &BTreeMap<K, String>) -> Vec<(char, String)> {
    let change = |key: &K| {
        let name = key.as_ref();
        match (a.get(key), b.get(key)) {
            (Some(was), Some(is)) if was == is => None,
            (Some(was), Some(is)) => Some(('~', format!("{name} {was} -> {is}"))),
            (Some(was), None) => Some(('-', format!("{name} {was}"))),
            (None, Some(is)) => Some(('+', format!("{name} {is}"))),
            (None, None) => None,
        }
    };
    names(a, b).into_iter().filter_map(change).collect()
}

/// The differences of two lists of files.
fn files(
    a: &BTreeMap<String, View<'_>>,
    b: &BTreeMap<String, View<'_>>,
    what: &str,
) -> Result<Vec<(char, String)>, ReadError> {
    let mut lines = Vec::new();
    for name in names(a, b) {
        match (a.get(name), b.get(name)) {
            (Some(was), Some(is)) if same(was, is)? => {}
            (Some(was), Some(is)) => lines.push(('~', format!("{what}{name} {}", sizes(was.length(), is.length())))),
            (Some(was), None) => lines.push(('-', format!("{what}{name} {}", size(was.length())))),
            (None, Some(is)) => lines.push(('+', format!("{what}{name} {}", size(is.length())))),
            (None, None) => {}
        }
    }
    Ok(lines)
}

fn sizes(was: u64, is: u64) -> String {
    if was == is { size(was) } else { format!("{} -> {}", size(was), size(is)) }
}

/// A difference in one line, after its mark.
fn line(difference: &Difference) -> (char, String) {
    let Difference { path, inode, how } = difference;
    let name = shown(path, inode);
    let alone = || match inode.kind {
        Kind::File => format!("{name} {}", size(inode.size)),
        _ if inode.is_whiteout() => format!("{name} (hides what lower layers have)"),
        _ => name.clone(),
    };
    match how {
        How::Gone => ('-', alone()),
        How::New => ('+', alone()),
        How::Changed(parts) => ('~', format!("{name} {}", parts.iter().map(part).collect::<Vec<_>>().join(", "))),
    }
}

fn part(part: &Part) -> String {
    match part {
        Part::Kind => "is something else now".to_owned(),
        Part::Content(was, is) => sizes(*was, *is),
        Part::Target => "leads elsewhere".to_owned(),
        Part::Mode(was, is) => format!("mode {was:o} -> {is:o}"),
        Part::Owner(was, is) => format!("owner {}:{} -> {}:{}", was.0, was.1, is.0, is.1),
        Part::Xattrs => "other extended attributes".to_owned(),
    }
}

/// A path for people; a folder's ends in a slash.
fn shown(path: &[u8], inode: &Inode) -> String {
    let slash = if inode.kind == Kind::Directory { "/" } else { "" };
    format!("{}{slash}", String::from_utf8_lossy(path))
}

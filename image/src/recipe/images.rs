//! Reads image recipes, and looks whether the files that they name are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, FileType},
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use toml::{Spanned, de::DeValue};

use super::{
    accounts, bases, cmdline, commands,
    error::{Placed, Source},
    from,
    image::{Compression, Content, File, Image, Named},
    names::{self, shown},
    reader::{Report, Table, Text},
    region, secrets, shapes,
    templates::Template,
    vars,
};

/// Longest path in an image, in bytes (PATH_MAX of Linux with its NUL is 4096).
const PATH_MAX: usize = 4095;
/// Longest file name, in bytes (NAME_MAX of Linux).
const FILE_NAME_MAX: usize = 255;
/// Permission bits with set-user-id, set-group-id and sticky.
const MODE_MAX: u32 = 0o7777;
/// Folders over which something is mounted when an image boots: what is put there would never be seen.
const HIDDEN: &[&str] = &["dev", "proc", "run", "sys", "tmp"];

/// Reads an image recipe. If anything was reported, the image lacks it and is not to be used.
pub(super) fn read(
    report: &mut Report,
    name: &str,
    source: &Arc<Source>,
    root: &Spanned<toml::de::DeTable<'_>>,
) -> (Image, Vec<Template>) {
    let title = format!("image recipe `{name}`");
    let table = Table::new(report, &shapes::IMAGE, &title, 0..0, root.get_ref());
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let from = from::read(report, &table, folder);
    let base = table.text(report, "base").map(|text| {
        bases::check(report, &text);
        report.placed(&text)
    });
    let packages = packages(report, &table);
    let services = services(report, &table);
    let (files, templates) = files(report, &table, folder);
    let vars = vars::read(report, &table);
    let groups = accounts::groups(report, &table);
    let users = accounts::users(report, &table);
    let timezone = region::timezone(report, &table);
    let locale = region::locale(report, &table);
    let commands = commands::read(report, &table);
    let cmdline = cmdline::read(report, &table, from::is_disk(&table));
    let compress = compress(report, &table);
    let secrets = secrets::read(report, &table);
    let image = Image {
        name: name.to_owned(),
        source: Arc::clone(source),
        from,
        base,
        packages,
        services,
        files,
        vars,
        groups,
        users,
        timezone,
        locale,
        commands,
        cmdline,
        compress,
        secrets,
    };
    (image, templates)
}

fn packages(report: &mut Report, table: &Table<'_>) -> Vec<Placed<String>> {
    let mut seen = BTreeSet::new();
    let mut packages = Vec::new();
    for text in table.texts(report, "packages") {
        if !names::is_package(text.value) {
            let hint = "lower-case letters, digits, `+`, `-` and `.`; versions stand in the lock, not here";
            report.wrong(text.span, format!("`{}` can't be the name of a package", shown(text.value)), hint);
        } else if !seen.insert(text.value) {
            report.wrong(text.span, format!("package `{}` is named twice", text.value), "leave one out");
        } else {
            packages.push(report.placed(&text));
        }
    }
    packages
}

/// How its layers are compressed, if at all.
fn compress(report: &mut Report, table: &Table<'_>) -> Option<Compression> {
    let text = table.text(report, "compress")?;
    if text.value == "zstd" {
        return Some(Compression::Zstd);
    }
    let message = format!("layers can't be compressed with `{}`", shown(text.value));
    report.wrong(text.span, message, "`zstd` is the only way; leave `compress` out for layers that are not compressed");
    None
}

fn services(report: &mut Report, table: &Table<'_>) -> Vec<Placed<String>> {
    let mut seen = BTreeSet::new();
    let mut services = Vec::new();
    for text in table.texts(report, "services") {
        match names::unit(text.value) {
            None => {
                let message = format!("`{}` can't be the name of a systemd unit", shown(text.value));
                report.wrong(text.span, message, "for example `nginx`, or with its suffix `ssh.socket`");
            }
            Some(unit) if !seen.insert(unit.clone()) => {
                report.wrong(text.span, format!("service `{unit}` is named twice"), "leave one out");
            }
            Some(unit) => services.push(Placed { value: unit, place: report.place(text.span) }),
        }
    }
    services
}

fn files(report: &mut Report, table: &Table<'_>, folder: &Path) -> (Vec<File>, Vec<Template>) {
    let (mut files, mut templates) = (Vec::new(), Vec::new());
    let Some(value) = table.get("files") else { return (files, templates) };
    let DeValue::Array(items) = value.get_ref() else {
        table.wrong_type(report, "files", "an array of tables", value);
        return (files, templates);
    };
    for item in items {
        if let Some(table) = Table::open(report, &shapes::FILE, "a file", item.span(), item) {
            let Some(file) = file(report, &table, folder, item) else { continue };
            if table.flag(report, "template") == Some(true) {
                templates.extend(Template::read(report, &table, files.len(), &file));
            }
            files.push(file);
        }
    }
    check_paths(report, &files);
    (files, templates)
}

fn file(report: &mut Report, table: &Table<'_>, folder: &Path, item: &Spanned<DeValue<'_>>) -> Option<File> {
    let path = table.text(report, "path").and_then(|text| image_path(report, &text));
    let source = table.text(report, "source");
    let inline = table.text(report, "content");
    let mode = mode(report, table, MODE_MAX);
    let owner = accounts::owner(report, table, "owner");
    let group = accounts::owner(report, table, "group");
    let content = match (table.get("source").is_some(), table.get("content").is_some()) {
        (true, false) => source.and_then(|text| beside(report, &text, folder)).map(|found| match found {
            Beside::File(path) => Content::File(path),
            Beside::Directory(path) => Content::Directory(path),
        }),
        (false, true) => inline.map(|text| Content::Inline(text.value.to_owned())),
        (both, _) => {
            let message = if both {
                "a file has both `source` and `content`"
            } else {
                "a file has neither `source` nor `content`"
            };
            let at = table.key_span("content").or(table.key_span("path")).unwrap_or(item.span());
            report.wrong(
                at,
                message,
                r#"exactly one: `source = "web/index.html"` beside the recipe, or `content = "text"`"#,
            );
            None
        }
    };
    Some(File { path: path?, content: content?, mode: mode?, owner: owner?, group: group? })
}

/// The path, if something can be put there.
pub(super) fn image_path(report: &mut Report, text: &Text<'_>) -> Option<Placed<String>> {
    let path = whole_path(report, text)?;
    let first = path.value.split('/').nth(1).unwrap_or_default();
    if HIDDEN.contains(&first) {
        report.wrong(
            text.span.clone(),
            format!("`{}` would never be seen", shown(text.value)),
            "something is mounted over /dev, /proc, /run, /sys and /tmp when the image boots",
        );
        return None;
    }
    Some(path)
}

/// The path, if it is one that is written out.
pub(super) fn whole_path(report: &mut Report, text: &Text<'_>) -> Option<Placed<String>> {
    let mut wrong = |message: &str, hint: &str| {
        report.wrong(text.span.clone(), format!("`{}` {message}", shown(text.value)), hint);
        None
    };
    let Some(below_root) = text.value.strip_prefix('/') else {
        return wrong("is not an absolute path", "the path in the image begins with `/`");
    };
    let parts: Vec<&str> = below_root.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return wrong("has an empty part, `.` or `..`", "write the path out, without a slash at its end");
    }
    if text.value.len() > PATH_MAX || parts.iter().any(|part| part.len() > FILE_NAME_MAX) {
        return wrong("is too long", "a path has at most 4095 bytes, each part at most 255");
    }
    if text.value.chars().any(char::is_control) {
        return wrong("has control characters", "use printable characters");
    }
    Some(report.placed(text))
}

/// The mode, if it is right and at most `max`; it may be left out.
#[expect(clippy::option_option, reason = "the outer says whether it was right, the inner whether it was there")]
pub(super) fn mode(report: &mut Report, table: &Table<'_>, max: u32) -> Option<Option<u32>> {
    let Some(value) = table.get("mode") else { return Some(None) };
    let DeValue::Integer(integer) = value.get_ref() else {
        table.wrong_type(report, "mode", "an octal number", value);
        return None;
    };
    let mode = u32::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|&mode| mode <= max);
    if mode.is_none() || integer.radix() != 8 {
        let message = format!("`{}` is not a mode", shown(&integer.to_string()));
        let example = if max == MODE_MAX { "0o644" } else { "0o400" };
        report.wrong(value.span(), message, format!("an octal number up to {max:#o}, for example `mode = {example}`"));
        return None;
    }
    Some(mode)
}

/// What lies beside a recipe or deeper, openable from where the command runs.
pub(super) enum Beside {
    File(PathBuf),
    Directory(PathBuf),
}

/// What a recipe names, which must lie beside it or deeper.
pub(super) fn beside(report: &mut Report, text: &Text<'_>, folder: &Path) -> Option<Beside> {
    let relative = Path::new(text.value);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if text.value.is_empty() || text.value.contains('\0') || !relative.components().all(plain) {
        let message = format!("`{}` leads out of the recipe's folder", shown(text.value));
        report.wrong(text.span.clone(), message, "give a relative path without `..`, beside the recipe or deeper");
        return None;
    }
    let path = folder.join(relative.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>());
    match look(&path, folder) {
        Ok(found) => Some(found),
        Err(Unusable::Escapes) => {
            let message = format!("`{}` leads out of the recipe's folder through a symbolic link", shown(text.value));
            report.wrong(text.span.clone(), message, "copy what it points to into the recipe's folder");
            None
        }
        Err(Unusable::Special) => {
            let message = format!("`{}` is neither a file nor a directory", shown(text.value));
            report.wrong(text.span.clone(), message, "devices, sockets and pipes are not read: name a file");
            None
        }
        Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            let message = format!("`{}` does not exist", shown(text.value));
            report.wrong(text.span.clone(), message, format!("looked for {}", shown(&path.to_string_lossy())));
            None
        }
        Err(Unusable::Unreadable(path, error)) => {
            let message = format!("can't read `{}`: {error}", shown(&path.to_string_lossy()));
            report.wrong(text.span.clone(), message, "`chmod -R a+rX` lets everybody read it");
            None
        }
        Err(Unusable::Io(error)) => {
            let message = format!("can't look at `{}`: {error}", shown(text.value));
            report.wrong(text.span.clone(), message, format!("looked for {}", shown(&path.to_string_lossy())));
            None
        }
    }
}

/// A file that lies there. A directory is none: `hint` says what to do then.
pub(super) fn file_beside(report: &mut Report, text: &Text<'_>, folder: &Path, hint: &str) -> Option<Named> {
    match beside(report, text, folder)? {
        Beside::File(file) => Some(Named { path: report.placed(text), file }),
        Beside::Directory(_) => {
            report.wrong(text.span.clone(), format!("`{}` is a directory", shown(text.value)), hint);
            None
        }
    }
}

enum Unusable {
    Escapes,
    Special,
    /// It, or what lies in it.
    Unreadable(PathBuf, io::Error),
    Io(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn look(path: &Path, folder: &Path) -> Result<Beside, Unusable> {
    let real = path.canonicalize()?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !real.starts_with(folder.canonicalize()?) {
        return Err(Unusable::Escapes);
    }
    let kind = real.metadata()?.file_type();
    readable(path, kind)?;
    if kind.is_dir() {
        Ok(Beside::Directory(path.to_owned()))
    } else if kind.is_file() {
        Ok(Beside::File(path.to_owned()))
    } else {
        Err(Unusable::Special)
    }
}

/// Whether a file can be read, or a folder with all in it. Links in a folder are not followed: they stay what they are.
fn readable(path: &Path, kind: FileType) -> Result<(), Unusable> {
    let failed = |error| Unusable::Unreadable(path.to_owned(), error);
    if kind.is_file() {
        fs::File::open(path).map_err(failed)?;
    } else if kind.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            readable(&entry.path(), entry.file_type().map_err(failed)?)?;
        }
    }
    Ok(())
}

/// No path twice, and none below a file.
fn check_paths(report: &mut Report, files: &[File]) {
    let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
    for file in files {
        let is_directory = matches!(file.content, Content::Directory(_));
        if seen.insert(&file.path.value, is_directory).is_some() {
            let message = format!("`{}` is put into the image twice", shown(&file.path.value));
            report.wrong(file.path.place.span.clone(), message, "leave one out");
        }
    }
    for file in files {
        let path = file.path.value.as_str();
        let above = path.match_indices('/').map(|(slash, _)| &path[..slash]);
        if let Some(other) = above.into_iter().find(|above| seen.get(above) == Some(&false)) {
            let message = format!("`{}` lies below `{}`, which is a file", shown(path), shown(other));
            report.wrong(file.path.place.span.clone(), message, "a path can be a file or a folder, not both");
        }
    }
}

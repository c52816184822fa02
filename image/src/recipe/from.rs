//! Reads what an image recipe says of images that are not made of packages: `from`, and what runs in them.

use std::{collections::BTreeMap, ops::Range, path::Path};

use toml::{Spanned, de::DeValue};

use super::{
    error::Placed,
    image::{Archive, Disk, From, Named, Root},
    images::{Beside, beside, file_beside},
    names::shown,
    reader::{Report, Table, Text, text},
    shapes,
};
use crate::reference::Reference;

/// Keys that only images with `from` have.
const OF_FROM: [&str; 4] = ["command", "env", "workdir", "user"];
/// Keys that only images made of packages have.
const OF_PACKAGES: [&str; 8] = ["base", "packages", "services", "users", "groups", "timezone", "locale", "commands"];

/// Keys that no image has that is a whole disk.
const NOT_OF_DISKS: [&str; 8] = ["files", "vars", "secrets", "compress", "command", "env", "workdir", "user"];
/// What `from` of a whole disk has beside it.
const OF_DISKS: [&str; 2] = ["kernel", "initrd"];
/// The keys of `from` that name archives, and how each is read. A whole `disk` is none.
const ARCHIVES: [(&str, ReadArchive); 3] = [("rootfs", rootfs), ("oci", oci), ("registry", registry)];
type ReadArchive = fn(&mut Report, &Text<'_>, &Path) -> Option<Archive>;

/// Whether the image is a whole disk, as far as `from` tells.
pub(super) fn is_disk(table: &Table<'_>) -> bool {
    matches!(table.get("from").map(Spanned::get_ref), Some(DeValue::Table(from)) if from.contains_key("disk"))
}

/// `from` with all that goes with it. If anything was reported, it is not to be used.
pub(super) fn read(report: &mut Report, table: &Table<'_>, folder: &Path) -> Option<From> {
    let command = command(report, table);
    let env = env(report, table);
    let workdir = table.text(report, "workdir").and_then(|text| workdir(report, &text));
    let user = table.text(report, "user").and_then(|text| user(report, &text));
    let Some(value) = table.get("from") else {
        for (key, span) in OF_FROM.iter().filter_map(|key| Some((key, table.key_span(key)?))) {
            let hint = "an image made of packages has systemd, which starts units: put one into the image with `[[files]]` \
                        and name it in `services`";
            report.wrong(span, format!("`{key}` is only for images with `from`"), hint);
        }
        return None;
    };
    let disk = is_disk(table);
    for (key, span) in NOT_OF_DISKS.iter().filter(|_| disk).filter_map(|key| Some((key, table.key_span(key)?))) {
        let hint = "leave it out: the disk has a system of its own, into which the rack puts nothing and in which it starts nothing";
        report.wrong(span, format!("`{key}` is not for an image that is a whole disk"), hint);
    }
    for (key, span) in OF_PACKAGES.iter().filter_map(|key| Some((key, table.key_span(key)?))) {
        let hint = if disk {
            "leave it out: what is on the disk is taken as it is, and nothing can be added to it"
        } else {
            "leave it out: what `from` names is taken as it is, and only `[[files]]` can be added to it"
        };
        report.wrong(span, format!("`{key}` is not for images with `from`"), hint);
    }
    let at = table.key_span("from").unwrap_or(value.span());
    let from = Table::open(report, &shapes::FROM, "`from`", at.clone(), value)?;
    let formats = ARCHIVES.map(|(key, read)| (key, Some(read))).into_iter().chain([("disk", None)]);
    let named: Vec<_> = formats.filter(|(key, _)| from.get(key).is_some()).collect();
    let &[(key, archive)] = &named[..] else {
        let message = format!("`from` names {} formats", if named.is_empty() { "none of the" } else { "several" });
        let hint = "exactly one: `rootfs = \"alpine.tar.gz\"`, `oci = \"app.tar\"`, \
                    `registry = \"registry.example.org/team/app:1.2\"` or `disk = \"server.qcow2\"`";
        report.wrong(at, message, hint);
        return None;
    };
    let path = from.text(report, key)?;
    let Some(archive) = archive else {
        return whole_disk(report, &from, &at, &path, folder).map(From::Disk);
    };
    for (key, span) in OF_DISKS.iter().filter_map(|key| Some((key, from.key_span(key)?))) {
        let hint = "leave it out: the rack's own kernel is booted; only a whole `disk` brings one";
        report.wrong(span, format!("`{key}` is only for a `disk`"), hint);
    }
    let archive = archive(report, &path, folder)?;
    if matches!(archive, Archive::Rootfs(_)) && command.is_none() {
        for (key, span) in OF_FROM[1..].iter().filter_map(|key| Some((key, table.key_span(key)?))) {
            let hint = "name the `command` too; without one, the image's own /sbin/init is started as it is";
            report.wrong(span, format!("`{key}` is for a `command`, and there is none"), hint);
        }
    }
    Some(From::Root(Root { archive, command, env, workdir, user }))
}

fn rootfs(report: &mut Report, path: &Text<'_>, folder: &Path) -> Option<Archive> {
    let hint = "`rootfs` is a tar archive: make one with `tar --create --xattrs`";
    file_beside(report, path, folder, hint).map(Archive::Rootfs)
}

fn oci(report: &mut Report, path: &Text<'_>, folder: &Path) -> Option<Archive> {
    let (Beside::File(file) | Beside::Directory(file)) = beside(report, path, folder)?;
    Some(Archive::Oci(Named { path: report.placed(path), file }))
}

fn registry(report: &mut Report, text: &Text<'_>, _folder: &Path) -> Option<Archive> {
    match text.value.parse::<Reference>() {
        Ok(_) => Some(Archive::Registry(report.placed(text))),
        Err(error) => {
            let message = format!("`{}` names no image in a registry: {error}", shown(text.value));
            let hint = "host, repository and tag, for example `registry = \"registry.example.org/team/app:1.2\"`";
            report.wrong(text.span.clone(), message, hint);
            None
        }
    }
}

/// A whole disk, and beside it the two files that boot it.
fn whole_disk(
    report: &mut Report,
    from: &Table<'_>,
    at: &Range<usize>,
    path: &Text<'_>,
    folder: &Path,
) -> Option<Disk> {
    let [kernel, initrd] = OF_DISKS.map(|key| {
        if from.get(key).is_none() {
            let hint = r#"name both, as the system on the disk has them in its /boot: `kernel = "vmlinuz"`, `initrd = "initrd.img"`"#;
            report.wrong(at.clone(), format!("`from` names a disk, but no `{key}`"), hint);
            return None;
        }
        let path = from.text(report, key)?;
        file_beside(report, &path, folder, &format!("`{key}` is a file"))
    });
    let hint = "`disk` is a file, raw or qcow2: `qemu-img convert -O qcow2` makes one of a disk";
    let disk = file_beside(report, path, folder, hint);
    Some(Disk { disk: disk?, kernel: kernel?, initrd: initrd? })
}

fn command(report: &mut Report, table: &Table<'_>) -> Option<Placed<Vec<String>>> {
    let span = table.get("command")?.span();
    let words = table.texts(report, "command");
    let example = r#"a program and its arguments, for example `command = ["/usr/bin/server", "--port", "80"]`"#;
    if let Some(word) = words.iter().find(|word| word.value.contains('\0')) {
        report.wrong(word.span.clone(), "a NUL can't be in a command", example);
        return None;
    }
    if words.first().is_none_or(|program| program.value.is_empty()) {
        report.wrong(span, "`command` names no program", example);
        return None;
    }
    let value = words.into_iter().map(|word| word.value.to_owned()).collect();
    Some(Placed { value, place: report.place(span) })
}

fn env(report: &mut Report, table: &Table<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, value) in table.entries(report, "env") {
        if name.value.is_empty() || name.value.contains(['=', '\0']) {
            let message = format!("`{}` can't be the name of a variable", shown(name.value));
            report.wrong(name.span, message, "a name without `=`, for example `env = { MODE = \"production\" }`");
            continue;
        }
        match variable(value) {
            Some(text) => _ = env.insert(name.value.to_owned(), text.value.to_owned()),
            None => {
                let message = format!("the variable `{}` must be a string without NUL", shown(name.value));
                report.wrong(value.span(), message, "for example `env = { PORT = \"80\" }`");
            }
        }
    }
    env
}

fn variable<'a>(value: &'a Spanned<DeValue<'a>>) -> Option<Text<'a>> {
    text(value).filter(|text| !text.value.contains('\0'))
}

fn workdir(report: &mut Report, text: &Text<'_>) -> Option<String> {
    let fine = text.value.starts_with('/')
        && !text.value.contains('\0')
        && text.value.split('/').all(|part| part != ".." && part != ".");
    if !fine {
        let message = format!("`{}` can't be the folder that a program is started in", shown(text.value));
        report.wrong(
            text.span.clone(),
            message,
            "an absolute path without `.` and `..`, for example `workdir = \"/srv\"`",
        );
    }
    fine.then(|| text.value.to_owned())
}

fn user(report: &mut Report, text: &Text<'_>) -> Option<Placed<String>> {
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-$".contains(c));
    let mut parts = text.value.split(':');
    let fine = parts.next().is_some_and(plain) && parts.next().is_none_or(plain) && parts.next().is_none();
    if !fine {
        let message = format!("`{}` can't be a user", shown(text.value));
        report.wrong(text.span.clone(), message, "a name or number, and after a colon a group: `www-data` or `33:33`");
    }
    fine.then(|| report.placed(text))
}

//! Reads `[repositories.NAME]`: packages beside those of the base, from a suite of Debian's own archive or from
//! somebody else's archive, which is known by its URL (sources.list(5)).

use std::{collections::BTreeMap, ops::Range, path::Path};

use toml::{Spanned, de::DeValue};

use super::{
    bases,
    error::Placed,
    image::Named,
    images,
    names::{self, shown},
    rack::{Foreign, Repository},
    reader::{Report, Table, Text},
    shapes,
};

/// Most repositories of a rack: all are asked at once, each by a thread of its own.
const REPOSITORIES_MAX: usize = 32;
/// Longest URL: keeps messages and locks readable.
const URL_MAX: usize = 1024;
/// Longest name of a suite or component.
const WORD_MAX: usize = 64;
/// The base's own archives have these names in locks, and as folders.
const RESERVED: [&str; 2] = ["debian", "debian-security"];
/// Names of Debian's suites that mean another release some day.
const ALIASES: [&str; 6] = ["stable", "oldstable", "oldoldstable", "testing", "unstable", "experimental"];
/// The component without which Debian has no packages.
const MAIN: &str = "main";

/// Reads all repositories; those that name no base are of `base`, and the keys are in `folder`.
pub(super) fn read<'a>(
    report: &mut Report,
    entries: Vec<(Text<'a>, &'a Spanned<DeValue<'a>>)>,
    base: &str,
    folder: &Path,
) -> BTreeMap<String, Repository> {
    let mut found = BTreeMap::new();
    // Which repository names a package of a base.
    let mut named: BTreeMap<(String, String), String> = BTreeMap::new();
    for (number, (name, value)) in entries.into_iter().enumerate() {
        if number == REPOSITORIES_MAX {
            let message = format!("there are more than {REPOSITORIES_MAX} repositories");
            report.wrong(name.span.clone(), message, "leave some out");
        }
        if !names::is_name(name.value) {
            let message = format!("`{}` can't be the name of a repository", shown(name.value));
            report.wrong(name.span.clone(), message, names::name_rule());
        } else if RESERVED.contains(&name.value) {
            let message = format!("`{}` is the name of an archive of the base", name.value);
            report.wrong(name.span.clone(), message, "give the repository another name");
        }
        let Some(repository) = repository(report, &name, value, base, folder) else { continue };
        for package in &repository.packages {
            let of = (repository.base.clone(), package.value.clone());
            if let Some(other) = named.insert(of, name.value.to_owned()) {
                let message = format!("`{}` is to be taken from repository `{other}` already", package.value);
                report.wrong(package.place.span.clone(), message, "leave one out: it can come from one place only");
            }
        }
        found.insert(name.value.to_owned(), repository);
    }
    found
}

fn repository<'a>(
    report: &mut Report,
    name: &Text<'a>,
    value: &'a Spanned<DeValue<'a>>,
    base: &str,
    folder: &Path,
) -> Option<Repository> {
    let title = format!("repository `{}`", shown(name.value));
    let table = Table::open(report, &shapes::REPOSITORY, &title, name.span.clone(), value)?;
    let named = table.text(report, "base");
    named.iter().for_each(|base| bases::check(report, base));
    let base = named.map_or(base, |base| base.value).to_owned();
    let url = table.text(report, "url");
    let key = table.text(report, "key");
    let suite = table.text(report, "suite");
    let components = table.texts(report, "components");
    let packages = packages(report, &table);
    let foreign = match (&url, &key) {
        (Some(url), Some(key)) => Some(foreign(report, url, key, folder)),
        (Some(url), None) => {
            let hint = "the archive's public key in a file beside this one, for example `key = \"keys/example.asc\"`";
            report.wrong(url.span.clone(), format!("{title} has a `url` and no `key`"), hint);
            return None;
        }
        (None, Some(key)) => {
            let hint = "without `url`, a suite of Debian's own archive is meant, whose keys are known: leave `key` out, or name \
                        the `url` too";
            report.wrong(key.span.clone(), format!("{title} has a `key` and no `url`"), hint);
            return None;
        }
        (None, None) => None,
    };
    let suite = suite?;
    let flat = suite.value.ends_with('/');
    check_suite(report, &suite, url.is_some());
    for component in &components {
        if !is_word(component.value) {
            let message = format!("`{}` can't be the name of a component", shown(component.value));
            report.wrong(component.span.clone(), message, "for example `components = [\"main\", \"contrib\"]`");
        }
    }
    let mut components: Vec<String> = components.into_iter().map(|component| component.value.to_owned()).collect();
    components.sort();
    components.dedup();
    match (flat, components.as_slice(), table.key_span("components")) {
        (true, _, Some(span)) => {
            let hint = "leave it out: a suite that ends with `/` is a plain folder of packages";
            report.wrong(span, format!("{title} can't have components"), hint);
        }
        (false, [], Some(span)) => {
            report.wrong(span, format!("{title} has no component"), "leave it out for `main`");
        }
        (false, [], None) => components.push(MAIN.to_owned()),
        _ => {}
    }
    let foreign = match foreign {
        None => None,
        Some(foreign) => Some(foreign?),
    };
    Some(Repository { base, foreign, suite: report.placed(&suite), components, packages })
}

fn foreign(report: &mut Report, url: &Text<'_>, key: &Text<'_>, folder: &Path) -> Option<Foreign> {
    let root = url.value.trim_end_matches('/');
    let right = is_url(root);
    if !right {
        let message = format!("`{}` is not the URL of an archive", shown(url.value));
        let hint = "http or https, no user, `?` or `#`: as behind `deb` in sources.list(5), for example \
                    `url = \"https://packages.example.org/debian\"`";
        report.wrong(url.span.clone(), message, hint);
    }
    let hint = "the file of an OpenPGP public key, `.asc` or `.gpg`";
    let Named { path: key, file } = images::file_beside(report, key, folder, hint)?;
    right.then(|| Foreign { url: root.to_owned(), key, file })
}

fn check_suite(report: &mut Report, suite: &Text<'_>, foreign: bool) {
    let span: Range<usize> = suite.span.clone();
    if foreign {
        let parts = suite.value.strip_suffix('/').unwrap_or(suite.value);
        if !matches!(suite.value, "/" | "./") && !parts.split('/').all(is_word) {
            let message = format!("`{}` can't be the name of a suite", shown(suite.value));
            report.wrong(span, message, "as behind the URL in sources.list(5), for example `stable` or `./`");
        }
        return;
    }
    let first = suite.value.split('-').next().unwrap_or_default();
    if ALIASES.contains(&first) {
        let message = format!("`{}` is another release some day", shown(suite.value));
        report.wrong(span, message, "name Debian's suites by their code name, for example `trixie-backports` or `sid`");
    } else if !is_word(suite.value) {
        let message = format!("`{}` can't be the name of a suite", shown(suite.value));
        report.wrong(span, message, "the code name of a suite of Debian's, for example `trixie-backports`");
    }
}

fn packages(report: &mut Report, table: &Table<'_>) -> Vec<Placed<String>> {
    let texts = table.texts(report, "packages");
    for text in &texts {
        if !names::is_package(text.value) {
            let message = format!("`{}` can't be the name of a package", shown(text.value));
            report.wrong(
                text.span.clone(),
                message,
                "a package's whole name, for example `packages = [\"nginx-light\"]`",
            );
        }
    }
    texts.iter().map(|text| report.placed(text)).collect()
}

/// Whether the text can be the root of an archive: it becomes part of URLs, and of a lock that may come from anywhere.
pub fn is_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    matches!(scheme, "http" | "https")
        && !host.is_empty()
        && text.len() <= URL_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#@\\\"`".contains(&byte))
        && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether the text is a suite's or component's name, which becomes part of a path.
fn is_word(text: &str) -> bool {
    (1..=WORD_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.+~_:".contains(&byte))
}

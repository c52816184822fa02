//! Loads a rack recipe with all image recipes that it names.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use toml::{Spanned, de::DeTable};

use super::{
    bases::{self, RACK_BASE},
    disks,
    error::{Diagnostic, Diagnostics, LoadError, Place, Source},
    guests::{self, Draft},
    image::Image,
    images, mistaken,
    names::{self, shown},
    networks,
    rack::Rack,
    reader::{Report, Table, Text},
    repositories, shapes,
    templates::{self, Template},
    vars, warnings,
};

/// Largest recipe in bytes: a file named by mistake is refused before it fills the memory.
pub const RECIPE_MAX: u64 = 1 << 20;

/// What the TOML reader says of a key or name that stands twice in a table.
const DUPLICATE_KEY: &str = "duplicate key";

/// Loads a rack recipe and the image recipes that it names, and checks everything that can be known without network
/// and lock.
///
/// # Errors
/// All that is wrong at once, file by file; the first syntax error only, since what follows it is guesswork.
pub fn load(path: &Path) -> Result<Rack, LoadError> {
    let bytes = read(path).map_err(|error| LoadError::Read(path.to_owned(), error))?;
    parse(path, bytes).map_err(|found| LoadError::Invalid(Diagnostics(found)))
}

pub(super) fn parse(path: &Path, bytes: Vec<u8>) -> Result<Rack, Vec<Diagnostic>> {
    let source = decode(path, bytes)?;
    let root = syntax(&source)?;
    if let Some(key) = mistaken::key_of_an_image_recipe(root.get_ref()) {
        let place = Place { source: Arc::clone(&source), span: key };
        return Err(vec![Diagnostic::new(place, mistaken::MESSAGE).hint(mistaken::hint(path))]);
    }
    let mut report = Report::new(Arc::clone(&source));
    let table = Table::new(&mut report, &shapes::RECIPE, "the rack recipe", 0..0, root.get_ref());
    let head = head(&mut report, &table);
    let entries = table.entries(&mut report, "repositories");
    let base = head.as_ref().map_or(RACK_BASE, |head| &head.base.value);
    let repositories = repositories::read(&mut report, entries, base, path.parent().unwrap_or(Path::new("")));
    let entries = table.entries(&mut report, "networks");
    let networks = networks::read(&mut report, entries);
    let entries = table.entries(&mut report, "guests");
    let drafts = guests::read(&mut report, &networks, entries);
    let vars = vars::read(&mut report, &table);
    let (stems, sources) = image_recipes(&mut report, path, &drafts);

    let mut found = report.finish();
    let (mut images, mut templates) = (BTreeMap::new(), BTreeMap::new());
    for (name, source) in sources {
        match image(&name, source) {
            Ok((image, of_image)) => {
                templates.insert(name.clone(), of_image);
                images.insert(name, image);
            }
            Err(wrong) => found.extend(wrong),
        }
    }
    let rack = head.and_then(|head| {
        let networks = networks.into_iter().map(|(name, network)| Some((name, network?))).collect::<Option<_>>()?;
        let guests = drafts
            .into_iter()
            .map(|(name, mut draft)| {
                draft.guest.image.clone_from(stems.get(draft.image.value)?);
                Some((name, draft.guest))
            })
            .collect::<Option<_>>()?;
        Some(Rack { repositories, networks, guests, images, vars, ..head })
    });
    match rack {
        Some(mut rack) if found.is_empty() => {
            let mut wrong = disks::check(&rack, &source, root.get_ref());
            wrong.extend(templates::fill_in(&mut rack, &templates));
            if !wrong.is_empty() {
                return Err(wrong);
            }
            rack.warnings = warnings::find(&rack, &source, root.get_ref());
            Ok(rack)
        }
        _ => Err(found),
    }
}

/// `[rack]`, with everything else still empty.
fn head(report: &mut Report, root: &Table<'_>) -> Option<Rack> {
    let value = root.get("rack")?;
    let at = root.key_span("rack").unwrap_or(value.span());
    let table = Table::open(report, &shapes::RACK, "`[rack]`", at, value)?;
    let name = table.text(report, "name");
    let version = table.text(report, "version");
    let base = table.text(report, "base");
    let domain = table.text(report, "domain");
    let mut demand = |text: &Option<Text<'_>>, right: fn(&str) -> bool, what: &str, hint: String| {
        if let Some(text) = text.as_ref().filter(|text| !right(text.value)) {
            report.wrong(text.span.clone(), format!("`{}` can't be {what}", shown(text.value)), hint);
        }
    };
    demand(
        &name,
        |name| names::is_label(name, names::NAME_MAX),
        "the name of a rack",
        names::label_rule(names::NAME_MAX),
    );
    demand(
        &version,
        names::is_version,
        "a version",
        format!("1 to {} letters, digits, `.`, `-`, `~` and `^`, as in `2026.11.1`", names::VERSION_MAX),
    );
    demand(
        &domain,
        names::is_domain,
        "a domain",
        "lower-case labels with dots between them, as in `lab.internal`".to_owned(),
    );
    base.iter().for_each(|base| bases::check_racks(report, base));
    let name = name?.value.to_owned();
    Some(Rack {
        domain: domain.map_or_else(|| format!("{name}.internal"), |domain| domain.value.to_owned()),
        name,
        version: version?.value.to_owned(),
        base: report.placed(&base?),
        repositories: BTreeMap::new(),
        networks: BTreeMap::new(),
        guests: BTreeMap::new(),
        images: BTreeMap::new(),
        vars: BTreeMap::new(),
        warnings: Vec::new(),
    })
}

/// The images' names by the paths that guests give, and their recipes by name.
type ImageRecipes<'a> = (BTreeMap<&'a str, String>, BTreeMap<String, Arc<Source>>);

/// Finds the image recipes that guests name.
fn image_recipes<'a>(report: &mut Report, rack: &Path, drafts: &BTreeMap<String, Draft<'a>>) -> ImageRecipes<'a> {
    let folder = rack.parent().unwrap_or(Path::new(""));
    let mut stems = BTreeMap::new();
    let mut sources: BTreeMap<String, Arc<Source>> = BTreeMap::new();
    let mut images: Vec<&Text<'_>> = drafts.values().map(|draft| &draft.image).collect();
    images.sort_by_key(|image| image.span.start);
    for image in images {
        if stems.contains_key(image.value) {
            continue;
        }
        let Some((name, path)) = image_path(report, image, folder) else { continue };
        if let Some(other) = sources.get(&name) {
            if other.path != path {
                let message = format!("another image recipe is named `{name}`: {}", other.path.display());
                report.wrong(image.span.clone(), message, "an image is named like its file: rename one of them");
            }
        } else {
            let source = match read(&path).map(|bytes| decode(&path, bytes)) {
                Ok(Ok(source)) => source,
                Ok(Err(wrong)) => {
                    report.append(wrong);
                    continue;
                }
                Err(error) => {
                    let message = match error.kind() {
                        io::ErrorKind::NotFound => format!("image recipe `{}` does not exist", shown(image.value)),
                        _ => format!("can't read image recipe `{}`: {error}", shown(image.value)),
                    };
                    report.wrong(image.span.clone(), message, format!("looked for {}", path.display()));
                    continue;
                }
            };
            sources.insert(name.clone(), source);
        }
        stems.insert(image.value, name);
    }
    (stems, sources)
}

/// The image's name and the recipe's path, if both are right.
fn image_path(report: &mut Report, text: &Text<'_>, folder: &Path) -> Option<(String, PathBuf)> {
    let relative = Path::new(text.value);
    if relative.is_absolute() || text.value.contains('\0') || relative.extension().is_none_or(|suffix| suffix != "toml")
    {
        let message = format!("`{}` is not the path of an image recipe", shown(text.value));
        report.wrong(
            text.span.clone(),
            message,
            "a path relative to this file that ends in `.toml`, for example `images/web.toml`",
        );
        return None;
    }
    let name = relative.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if !names::is_label(name, names::NAME_MAX) {
        let message = format!("`{}` can't be the name of an image", shown(name));
        report.wrong(
            text.span.clone(),
            message,
            format!("its file's name without `.toml` is {}", names::label_rule(names::NAME_MAX)),
        );
        return None;
    }
    let path = folder.join(relative.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>());
    Some((name.to_owned(), path))
}

fn image(name: &str, source: Arc<Source>) -> Result<(Image, Vec<Template>), Vec<Diagnostic>> {
    let root = syntax(&source)?;
    let mut report = Report::new(Arc::clone(&source));
    let image = images::read(&mut report, name, &source, &root);
    let found = report.finish();
    if found.is_empty() { Ok(image) } else { Err(found) }
}

pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(RECIPE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > RECIPE_MAX {
        let message = format!("larger than {RECIPE_MAX} bytes, the most a recipe may have");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

fn decode(path: &Path, bytes: Vec<u8>) -> Result<Arc<Source>, Vec<Diagnostic>> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Arc::new(Source { path: path.to_owned(), text })),
        Err(error) => {
            let start = error.utf8_error().valid_up_to();
            // Up to the first wrong byte the text is the same, so the place is right.
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let place = Place { source: Arc::new(Source { path: path.to_owned(), text }), span: start..start };
            Err(vec![Diagnostic::new(place, "this is not UTF-8 text").hint("save the file as UTF-8")])
        }
    }
}

fn syntax(source: &Arc<Source>) -> Result<Spanned<DeTable<'_>>, Vec<Diagnostic>> {
    DeTable::parse(&source.text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let key = source.text.get(span.clone()).unwrap_or_default();
        let wrong = if error.message() == DUPLICATE_KEY {
            (format!("`{}` is there already", shown(key)), "leave one out, or give it another name")
        } else {
            (error.message().to_owned(), "recipes are written in TOML, see https://toml.io")
        };
        vec![Diagnostic::new(Place { source: Arc::clone(source), span }, wrong.0).hint(wrong.1)]
    })
}

//! `rackstick new DIR`: makes a folder with a small rack recipe that works, to begin with.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use rackstick_image::recipe;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::Serialize;

use crate::{output, report};

/// What stands for the rack's name in the files.
const NAME: &str = "NAME";
/// The files, by path in the folder.
const FILES: [(&str, &str); 4] = [
    (".gitignore", include_str!("new/gitignore")),
    ("NAME.toml", include_str!("new/rack.toml")),
    ("images/web.toml", include_str!("new/web.toml")),
    ("images/web/index.html", include_str!("new/index.html")),
];

/// What its help ends with.
const EXAMPLES: &str = concat!("Examples:\n", "  rackstick new home\n", "  rackstick new recipes/shop\n",);

/// Make a folder with a small rack recipe, to begin with
///
/// Folders above it are made, too. Its .gitignore keeps images that are built in it (out/) and values of secrets
/// (secrets/) out of git.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The folder, which must not exist yet; its name is the rack's
    #[arg(value_name = "NAME")]
    folder: PathBuf,
}

/// Why there is no recipe.
#[derive(Debug, thiserror::Error)]
enum NewError {
    #[error("`{name}` can't be the name of a rack; it is {}", recipe::name_rule())]
    Name { name: String },
    #[error("{} exists already, and nothing in it was changed; choose another name", .0.display())]
    Exists(PathBuf),
    #[error("can't make {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// What was made.
#[derive(Serialize)]
struct Made {
    recipe: PathBuf,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recipe = self.recipe.display();
        write!(f, "{recipe}: made; look into it, then build it with: rackstick build {recipe}")
    }
}

/// Makes the folder, whole or not at all.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let folder = &args.folder;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !recipe::is_name(name) {
        return Err(NewError::Name { name: folder.display().to_string() }.into());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |source| NewError::Io { path: folder.clone(), source };
    fs::create_dir_all(parent).map_err(failed)?;
    let beside = tempfile::Builder::new().prefix(".rackstick-new-").tempdir_in(parent).map_err(failed)?;
    let new = beside.path().join(name);
    fill(&new, name).map_err(failed)?;
    match renameat_with(CWD, &new, CWD, folder, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Err(NewError::Exists(folder.clone()).into()),
        Err(error) => return Err(failed(error.into()).into()),
    }
    output::result(&Made { recipe: folder.join(format!("{name}.toml")) })?;
    Ok(())
}

fn fill(folder: &Path, name: &str) -> io::Result<()> {
    for (path, content) in FILES {
        let path = folder.join(path.replace(NAME, name));
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, content.replace(NAME, name))?;
    }
    Ok(())
}

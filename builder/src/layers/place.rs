//! Puts a recipe's files into a tree, each with its owner and mode.

use rackstick_image::recipe::Owner;

use super::{
    accounts::Accounts,
    configure::failed,
    files,
    stage::protocol::{Content, Failure, Marked, Mistakes, PlacedFile},
    tree::{Ids, Tree},
};

/// Puts all of them there; the image's users are there already.
pub fn place(tree: &Tree, placed: &[PlacedFile]) -> Result<(), Failure> {
    let owned = placed.iter().any(|file| file.owner.is_some() || file.group.is_some());
    let accounts = if owned { Some(Accounts::load(tree)?) } else { None };
    let mut mistakes = Mistakes::default();
    for file @ PlacedFile { path, content, mode, .. } in placed {
        let at = failed(&path.display().to_string());
        let ids = match &accounts {
            Some(accounts) => mistakes.note(ids(accounts, file))?.flatten(),
            None => None,
        };
        match content {
            Content::Folder => {
                let chmod = |fd| {
                    rustix::fs::chmodat(fd, ".", rustix::fs::Mode::from_raw_mode(*mode), rustix::fs::AtFlags::empty())
                };
                tree.create_dirs(path, &mut |_| ()).and_then(|fd| Ok(chmod(fd)?)).map_err(&at)?;
            }
            Content::Symlink(target) => tree.symlink(target, path).map_err(&at)?,
            Content::Copy { source, sha256 } => {
                let copied = files::copy(source, *sha256, &mut |bytes| tree.write_from(path, bytes, *mode));
                copied.map_err(failed(&source.display().to_string()))?;
            }
        }
        match (ids, content) {
            (None, _) => {}
            (Some(ids), Content::Symlink(_)) => tree.own_link(path, ids).map_err(at)?,
            // A folder's path may lead through a symlink of the image.
            (Some(ids), Content::Folder) => tree.own(&path.join("."), ids, *mode).map_err(at)?,
            (Some(ids), Content::Copy { .. }) => tree.own(path, ids, *mode).map_err(at)?,
        }
    }
    mistakes.tell()
}

/// Whom the recipe gives the file to; nobody if it names none.
fn ids(accounts: &Accounts, file: &PlacedFile) -> Result<Option<Ids>, Failure> {
    let id = |owner: &Option<Marked<Owner>>, find: &dyn Fn(&Marked<String>) -> Result<u32, Failure>| match owner {
        None => Ok(0),
        Some(Marked { value: Owner::Id(id), .. }) => Ok(*id),
        Some(Marked { value: Owner::Name(name), mark }) => find(&Marked { value: name.clone(), mark: *mark }),
    };
    if file.owner.is_none() && file.group.is_none() {
        return Ok(None);
    }
    let mut mistakes = Mistakes::default();
    let uid = mistakes.note(id(&file.owner, &|name| accounts.uid(name)))?;
    let gid = mistakes.note(id(&file.group, &|name| accounts.gid(name)))?;
    mistakes.tell()?;
    Ok(uid.zip(gid).map(|(uid, gid)| Ids { uid, gid }))
}

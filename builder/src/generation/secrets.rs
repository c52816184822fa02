//! The secrets that an image wants, as the manifest names them: whom each belongs to is looked up in the finished
//! image, so that a user whom it lacks is found before it is flashed. Follows passwd(5) and group(5).

use std::{fs::File, path::Path};

use rackstick_image::{
    erofs::read::Layer,
    manifest::{Blob, Secret},
    recipe::{Diagnostic, Image, Owner, Placed},
    view::{ReadError, View},
};

use super::{BuildError, images::Blobs};

/// Largest such file: one with 100,000 users.
const ACCOUNTS_MAX: u64 = 8 << 20;

/// The secrets of an image whose layers, lowest first, are those.
pub fn of(image: &Image, layers: &[Blob], files: &Blobs) -> Result<Vec<Secret>, BuildError> {
    let number = |owner: &Option<Placed<Owner>>, kind: &Kind| match owner {
        None => Ok(0),
        Some(Placed { value: Owner::Id(id), .. }) => Ok(*id),
        Some(Placed { value: Owner::Name(name), place }) => {
            let text = text(layers, files, kind.file)?;
            number(&text, name).ok_or_else(|| {
                let message = format!("the image has no {} `{name}`", kind.what);
                let hint = format!("add it with `[{}.{name}]`, or give the number", kind.table);
                let diagnostic = Diagnostic::new(place.clone(), message).hint(hint);
                BuildError::Recipe(diagnostic.into())
            })
        }
    };
    let user = Kind { what: "user", file: "etc/passwd", table: "users" };
    let group = Kind { what: "group", file: "etc/group", table: "groups" };
    let secrets = image.secrets.iter().map(|(name, secret)| {
        let ids = BuildError::all([number(&secret.owner, &user), number(&secret.group, &group)])?;
        Ok(Secret { name: name.clone(), path: secret.path.clone(), uid: ids[0], gid: ids[1], mode: secret.mode })
    });
    BuildError::all(secrets)
}

struct Kind {
    what: &'static str,
    file: &'static str,
    table: &'static str,
}

/// A file of the image; nothing if it has none.
fn text(layers: &[Blob], files: &Blobs, name: &str) -> Result<String, BuildError> {
    // The highest layer's file hides those below.
    for blob in layers.iter().rev() {
        let Some(file) = files.get(&blob.digest) else { continue };
        let found = look(&file.path, name).map_err(|source| BuildError::Look { layer: blob.label.clone(), source })?;
        if let Some(bytes) = found {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(String::new())
}

fn look(layer: &Path, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
    let io = |source| ReadError::Io { at: 0, source };
    let file = File::open(layer).map_err(io)?;
    let layer = Layer::open(View::whole(&file).map_err(io)?)?;
    match layer.find(name)? {
        None => Ok(None),
        Some(inode) if inode.is_whiteout() => Ok(Some(Vec::new())),
        Some(inode) => layer.content(&inode)?.bytes(ACCOUNTS_MAX).map(Some),
    }
}

/// The third field of the line whose first is the name.
fn number(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_their_whole_name() {
        let text = "root:x:0:0:root:/root:/bin/bash\nmail2:x:9:9\nmail:x:8:8:mail:/var/mail:\nbroken\nodd:x:y\n";
        let found = ["root", "mail", "mai", "broken", "odd", ""].map(|name| number(text, name));
        assert_eq!(found, [Some(0), Some(8), None, None, None, None]);
    }
}

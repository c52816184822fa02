//! From an image recipe to what a layer is made of. Each value that only the finished image can refuse (a user that no
//! package brought) gets a mark, by which what a stage says of it finds back to its line in the recipe.

use std::path::PathBuf;

use rackstick_image::recipe::{Content, Diagnostic, Diagnostics, File, Image, Place, Placed};

use super::{BuildError, Scratch, write};
use crate::layers::{
    self, Additions, Package, RecipeFile,
    stage::{
        self,
        protocol::{Changes, Marked, Mistake, NewGroup, NewUser},
    },
};

/// Where the marked values stand: a mark is an index.
#[derive(Default)]
pub struct Marks(Vec<Place>);

/// What `image` adds to its base, `packages` among it.
pub fn of(image: &Image, packages: Vec<Package>, scratch: &Scratch) -> Result<(Additions, Marks), BuildError> {
    let mut marks = Marks::default();
    let files = image.files.iter().enumerate().map(|(index, file)| marks.file(image, index, file, scratch));
    let files = files.collect::<Result<_, _>>()?;
    let changes = marks.changes(image);
    Ok((Additions { packages, files, changes }, marks))
}

impl Marks {
    fn at<T>(&mut self, value: T, place: &Place) -> Marked<T> {
        self.0.push(place.clone());
        Marked { value, mark: self.0.len() - 1 }
    }

    fn mark<T: Clone>(&mut self, placed: &Placed<T>) -> Marked<T> {
        self.at(placed.value.clone(), &placed.place)
    }

    fn all<T: Clone>(&mut self, placed: &[Placed<T>]) -> Vec<Marked<T>> {
        placed.iter().map(|placed| self.mark(placed)).collect()
    }

    /// A file as layers take it: it lies on disk.
    fn file(&mut self, image: &Image, index: usize, file: &File, scratch: &Scratch) -> Result<RecipeFile, BuildError> {
        let source = match &file.content {
            Content::File(path) | Content::Directory(path) => path.clone(),
            Content::Inline(text) => {
                let path = scratch.file(&format!("{}-{index}", image.name));
                write(&path, text.as_bytes())?;
                path
            }
        };
        let owner = file.owner.as_ref().map(|owner| self.mark(owner));
        let group = file.group.as_ref().map(|group| self.mark(group));
        Ok(RecipeFile { path: PathBuf::from(&file.path.value), source, mode: file.mode, owner, group })
    }

    fn changes(&mut self, image: &Image) -> Changes {
        let groups = image.groups.iter().map(|(name, group)| {
            let new = NewGroup { gid: group.gid, system: group.system };
            (name.clone(), self.at(new, &group.place))
        });
        let groups = groups.collect();
        let users = image.users.iter().map(|(name, user)| {
            let new = NewUser {
                uid: user.uid,
                group: user.group.as_ref().map(|group| self.mark(group)),
                groups: self.all(&user.groups),
                home: user.home.as_ref().map(PathBuf::from),
                shell: user.shell.as_ref().map(|shell| self.mark(shell)),
                comment: user.comment.clone(),
                system: user.system,
                authorized_keys: user.authorized_keys.clone(),
            };
            (name.clone(), self.at(new, &user.place))
        });
        let users = users.collect();
        Changes {
            groups,
            users,
            timezone: image.timezone.as_ref().map(|zone| self.mark(zone)),
            locale: image.locale.as_ref().map(|locale| self.mark(locale)),
            commands: self.all(&image.commands),
            services: self.all(&image.services),
        }
    }

    /// An error of a layer, with its places in the recipe if marked values are at fault.
    pub fn place(&self, error: layers::Error) -> BuildError {
        let layers::Error::Stage { source: stage::Error::Recipe(mistakes), .. } = &error else {
            return error.into();
        };
        let placed = mistakes.iter().map(|Mistake { mark, message, hint }| {
            self.0.get(*mark).map(|place| Diagnostic::new(place.clone(), message).hint(hint))
        });
        match placed.collect() {
            None => error.into(),
            Some(all) => BuildError::Recipe(Diagnostics(all)),
        }
    }
}

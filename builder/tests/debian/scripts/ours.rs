//! Our layers of a set, laid over the base's by the kernel and copied out.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use rackstick::layers::{Additions, Base, Layers, Package};

use super::super::apt::run;

/// A base, and what is needed to make layers upon it.
pub struct Ours {
    layers: Layers,
    base: Base,
}

impl Ours {
    /// Makes the base.
    pub fn new(folder: &Path, epoch: i64, base: &[Package]) -> Self {
        let layers = Layers::new(&folder.join("layers"), Path::new(super::PROGRAM), epoch, 2).unwrap();
        let base = layers.base(base, &|_| ()).unwrap();
        Self { layers, base }
    }

    /// What a guest with these packages sees, in a new folder.
    pub fn make(&self, target: &Path, set: &str, packages: &[Package]) -> PathBuf {
        let additions = Additions { packages: packages.to_vec(), ..Additions::default() };
        let layers = self.layers.image(set, &self.base, &additions, &|_| ()).unwrap();
        // An overlay without a writable layer wants two at least.
        let script = "set -e; mount -t tmpfs none /mnt; mkdir /mnt/all /mnt/empty; all=/mnt/empty; number=0
                      for layer; do
                          number=$((number + 1)); mkdir /mnt/$number; mount -o loop,ro \"$layer\" /mnt/$number; all=/mnt/$number:$all
                      done
                      mount -t overlay -o ro,lowerdir=$all none /mnt/all; cp -a /mnt/all \"$0\"";
        let mut copy = Command::new("unshare");
        copy.args(["-m", "sh", "-c", script]).args([target, &self.base.layer.path]);
        run(copy.args(layers.iter().map(|(_, layer)| &layer.path)));
        target.to_owned()
    }
}

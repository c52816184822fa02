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
        let layer = self.layers.image(set, &self.base, &additions, &|_| ()).unwrap();
        let script = "mount -t tmpfs none /mnt && mkdir /mnt/base /mnt/layer /mnt/all \
                      && mount -o loop,ro \"$0\" /mnt/base && mount -o loop,ro \"$1\" /mnt/layer \
                      && mount -t overlay -o ro,lowerdir=/mnt/layer:/mnt/base none /mnt/all && cp -a /mnt/all \"$2\"";
        let mut copy = Command::new("unshare");
        run(copy.args(["-m", "sh", "-c", script]).args([&self.base.layer.path, &layer.path, target]));
        target.to_owned()
    }
}

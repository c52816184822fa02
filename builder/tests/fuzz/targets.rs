//! The readers of what strangers wrote. Each is given bytes, and has to come to an end without a panic; what it says of
//! them is for other tests.

use super::seal;
use std::{
    fs::{self, File},
    io::Read,
    num::NonZero,
    path::{Path, PathBuf},
};

use rackstick::{
    from::{self, Pinned, disk::DiskError},
    layers::{Layers, deb},
};
use rackstick_image::{
    erofs::{
        self, Device, Mtime, Node,
        read::{Kind, Layer},
    },
    gpt::{check, read::Disk},
    lock::Lock,
    packed::is_size,
    recipe,
    sector::SectorSize,
    source::Source,
    view::{ReadError, View},
};

/// A reader, by the name of its folder in the corpus.
pub struct Target {
    pub name: &'static str,
    /// Reads the file, in a folder of its own.
    pub read: fn(&Place),
    /// Makes the sums in it right.
    pub seal: fn(&mut [u8]),
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target { name: "deb", read: |place| read_deb(&place.file).unwrap_or_default(), seal: seal::tar },
    Target { name: "erofs", read: |place| read_erofs(&place.file).unwrap_or_default(), seal: seal::erofs },
    Target { name: "gpt", read: |place| read_gpt(&place.file), seal: seal::gpt },
    Target { name: "image", read: |place| place.load("from = { rootfs = 'absent.tar' }", true), seal: |_| () },
    Target { name: "lock", read: |place| read_lock(&place.file), seal: |_| () },
    Target {
        name: "oci",
        read: |place| _ = place.build("from = { oci = 'input' }\ncommand = ['/app']\n"),
        seal: seal::oci,
    },
    Target { name: "qcow2", read: |place| read_disk(&place.file).unwrap_or_default(), seal: |_| () },
    Target { name: "recipe", read: |place| place.load("packages = ['a']\n", false), seal: |_| () },
    Target {
        name: "tar",
        read: |place| _ = place.build("from = { rootfs = 'input' }\ncommand = ['/app']\n"),
        seal: seal::tar,
    },
];

/// A layer with an inode of every kind, as only our own writer makes them; its files compressed or not.
pub fn layer(compressed: bool) -> Vec<u8> {
    let mut tree = erofs::Tree::new(Mtime::from_seconds(0));
    let mut add = |path: &str, kind| {
        let mut node = Node::new(kind, 0o644, Mtime::from_seconds(1));
        node.xattrs.insert(b"user.note".to_vec(), path.as_bytes().to_vec());
        tree.insert(path.as_bytes(), node).unwrap();
    };
    add("etc/file", erofs::Kind::File(Source::Bytes(vec![b'x'; 5000])));
    let numbers: Vec<u8> = (0..30_000_u32).flat_map(|number| (number * number / 7).to_le_bytes()).collect();
    let noise: Vec<u8> =
        (0..20_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ (at >> 7) as u8).collect();
    add("etc/numbers", erofs::Kind::File(Source::Bytes([&numbers[..], &numbers].concat())));
    add("etc/noise", erofs::Kind::File(Source::Bytes(noise)));
    add("etc/link", erofs::Kind::Symlink(b"file".to_vec()));
    add("dev/gone", erofs::Kind::CharDevice(Device { major: 0, minor: 0 }));
    add("dev/disk", erofs::Kind::BlockDevice(Device { major: 8, minor: 1 }));
    add("pipe", erofs::Kind::Fifo);
    (0..200).for_each(|number| add(&format!("many/{number}"), erofs::Kind::Socket));
    let mut out = std::io::Cursor::new(Vec::new());
    let compress = if compressed { NonZero::new(2) } else { None };
    erofs::write(&tree, &mut out, &erofs::WriteOptions { compress, ..Default::default() }).unwrap();
    out.into_inner()
}

/// A rack of one guest.
const RACK: &str =
    "[rack]\nname = 'r'\nversion = '1'\nbase = 'debian:trixie'\n[guests.g]\nimage = 'app.toml'\nmemory = '64 MiB'\n";
/// Most bytes that are read of each file in a layer: a few mutated bytes may make it terabytes of zeroes.
const READ: u64 = 1 << 20;

/// Where a target works.
pub struct Place {
    folder: PathBuf,
    layers: Layers,
    /// What it reads.
    pub file: PathBuf,
}

impl Place {
    /// In a folder that is there.
    pub fn new(folder: &Path) -> Self {
        let layers = Layers::new(&folder.join("layers"), Path::new(env!("CARGO_BIN_EXE_rackstick")), 0, 1).unwrap();
        Self { folder: folder.to_owned(), layers, file: folder.join("input") }
    }

    /// Loads a rack whose own recipe, or whose image's, is the file; the other one is `text` or fixed.
    fn load(&self, text: &str, image: bool) {
        let (rack, app) = (self.folder.join("rack.toml"), self.folder.join("app.toml"));
        let (file, other, text) = if image { (&app, &rack, RACK) } else { (&rack, &app, text) };
        fs::copy(&self.file, file).unwrap();
        fs::write(other, text).unwrap();
        if let Err(error) = recipe::load(&rack) {
            assert!(!error.to_string().is_empty());
        }
    }

    /// Makes layers of the file; whether that was possible.
    pub fn build(&self, text: &str) -> bool {
        fs::write(self.folder.join("rack.toml"), RACK).unwrap();
        fs::write(self.folder.join("app.toml"), text).unwrap();
        let rack = recipe::load(&self.folder.join("rack.toml")).unwrap();
        let scratch = tempfile::tempdir_in(&self.folder).unwrap();
        let Ok(pinned) = from::pin(&rack, scratch.path()) else { return false };
        let image = &rack.images["app"];
        let input = Pinned::of(image.root().unwrap(), &pinned["app"]).unwrap();
        let built = from::build(&self.layers, image, input, &[], scratch.path(), scratch.path());
        let Ok(built) = built else { return false };
        for (_, layer) in built.layers {
            read_erofs(&layer.path).expect("what was written can be read");
            fs::remove_file(layer.path).unwrap();
        }
        true
    }
}

fn read_disk(path: &Path) -> Result<(), DiskError> {
    let (size, _) = from::disk::pack(&File::open(path).unwrap(), std::io::sink())?;
    assert!(is_size(size));
    Ok(())
}

fn read_lock(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else { return };
    if let Ok(lock) = toml::from_str::<Lock>(&text) {
        let again = toml::to_string(&lock).expect("what was read can be written");
        assert_eq!(toml::from_str::<Lock>(&again).expect("what was written can be read"), lock);
    }
}

fn read_deb(path: &Path) -> Result<(), deb::Error> {
    let file = File::open(path).unwrap();
    let control = deb::control(&file)?;
    assert!(!control.database_name().is_empty());
    deb::data(&file, |archive| {
        for entry in archive.entries().map_err(deb::Error::from)? {
            let entry = entry.map_err(deb::Error::from)?;
            std::io::copy(&mut entry.take(READ), &mut std::io::sink()).map_err(deb::Error::from)?;
        }
        Ok(())
    })
}

fn read_erofs(path: &Path) -> Result<(), ReadError> {
    let file = File::open(path).unwrap();
    let layer = Layer::open(View::whole(&file).unwrap())?;
    for found in layer.walk() {
        let (_, inode) = found?;
        layer.xattrs(&inode)?;
        if matches!(inode.kind, Kind::File | Kind::Symlink) {
            let content = layer.content(&inode)?;
            let (mut pieces, mut read) = (content.pieces(), 0);
            while read < READ
                && let Some(piece) = pieces.next_piece()?
            {
                read += piece.len() as u64;
            }
        }
    }
    Ok(())
}

fn read_gpt(path: &Path) {
    let file = File::open(path).unwrap();
    for sector in [SectorSize::B512, SectorSize::B4096] {
        let disk = Disk::new(&file, sector.bytes()).unwrap().expect("sectors of this size are known");
        check::faults(&disk).unwrap();
        if let Some(table) = disk.table().unwrap() {
            for partition in table.partitions(sector) {
                disk.growth(&table, partition.number).unwrap();
            }
        }
    }
}

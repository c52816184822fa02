//! Finds the one image for this kind of machine, and gives its layers.

use std::path::Path;

use rackstick_image::{digest::Sha256, lock::Blob};

use super::{
    OciError, Place,
    format::{Config, Descriptor, Document, ImageConfig, Saved, digest, parse},
    place::blob,
};
use crate::from::spool::{self, Spooled};

/// Layers of one image at most: what container runtimes can mount is 127, and some flatten more.
const MAX_LAYERS: usize = 1024;
/// Images that are looked at in one layout at most.
const MAX_IMAGES: usize = 1024;
/// Indexes within indexes at most.
const MAX_DEPTH: usize = 4;
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";
/// What the types of layers begin with that are tar archives, compressed or not.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// An image in a [`Place`].
#[derive(Debug)]
pub struct Image {
    digest: Sha256,
    config: ImageConfig,
    layers: Vec<Layer>,
}

/// A layer's file, and the hashes that it must have.
#[derive(Debug)]
struct Layer {
    name: String,
    /// As it lies there: hash and size; an archive of `docker save` does not say them.
    packed: Option<(Sha256, u64)>,
    plain: Sha256,
}

/// What is looked at on the way.
#[derive(Default)]
struct Search {
    found: Vec<(String, Image)>,
    others: Vec<String>,
    seen: usize,
}

/// What a registry has under an image's name.
pub enum Named {
    /// Images for several platforms: the manifest of the one for linux/amd64.
    Index(Sha256),
    /// One image: its configuration and its layers, lowest first.
    Image(Vec<Blob>),
}

/// Reads what a registry has under an image's name: an index or a manifest.
pub fn named(bytes: &[u8]) -> Result<Named, OciError> {
    match parse(bytes, "what the registry has", "manifest")? {
        Document { manifests: Some(manifests), .. } => {
            let mut search = Search::default();
            // The first is the one that fits any machine; those behind it want more of the processor. One that does not
            // say what it is for is looked at when it is unpacked.
            let for_us = manifests.iter().find(|manifest| match &manifest.platform {
                Some(platform) => search.fits(&platform.os, &platform.architecture),
                None => true,
            });
            match for_us {
                Some(manifest) => Ok(Named::Index(digest(&manifest.digest)?)),
                None if search.others.is_empty() => Err(OciError::NoImage),
                None => Err(OciError::Platform(search.others.join(", "))),
            }
        }
        Document { config: Some(config), layers, .. } => {
            let layers = layers.unwrap_or_default();
            if layers.len() > MAX_LAYERS {
                return Err(OciError::TooMany { what: "layers", most: MAX_LAYERS });
            }
            let blob = |named: &Descriptor| Ok(Blob { sha256: digest(&named.digest)?, size: named.size });
            [config].iter().chain(&layers).map(blob).collect::<Result<_, _>>().map(Named::Image)
        }
        _ => Err(OciError::NoImage),
    }
}

/// The image for linux/amd64.
pub fn find(place: &Place) -> Result<Image, OciError> {
    let mut search = Search::default();
    if let Some(bytes) = place.text("index.json")? {
        let index: Document = parse(&bytes, "`index.json`", "index")?;
        search.index(place, index.manifests.unwrap_or_default(), "", 0)?;
    } else if let Some(bytes) = place.text("manifest.json")? {
        let saved: Vec<Saved> = parse(&bytes, "`manifest.json`", "list of images")?;
        for image in saved {
            search.saved(place, image)?;
        }
    } else {
        return Err(OciError::NoImage);
    }
    // One image may have several names.
    search.found.dedup_by(|(_, a), (_, b)| a.digest == b.digest);
    match search.found.len() {
        0 if search.others.is_empty() => Err(OciError::NoImage),
        0 => Err(OciError::Platform(search.others.join(", "))),
        1 => search.found.pop().map(|(_, image)| image).ok_or(OciError::NoImage),
        _ => Err(OciError::Several(search.found.into_iter().map(|(name, _)| name).collect())),
    }
}

impl Search {
    fn index(&mut self, place: &Place, manifests: Vec<Descriptor>, name: &str, depth: usize) -> Result<(), OciError> {
        for descriptor in manifests {
            self.seen += 1;
            if self.seen > MAX_IMAGES || depth > MAX_DEPTH {
                return Err(OciError::TooMany { what: "images", most: MAX_IMAGES });
            }
            if let Some(platform) = &descriptor.platform
                && !self.fits(&platform.os, &platform.architecture)
            {
                continue;
            }
            let hash = digest(&descriptor.digest)?;
            // One image may have several names, and must not fill the memory by them.
            if self.found.iter().any(|(_, image)| image.digest == hash) {
                continue;
            }
            let own = descriptor.annotations.and_then(|annotations| annotations.name);
            let name = own.unwrap_or_else(|| name.to_owned());
            let what = format!("`{}`", blob(hash));
            let document: Document = parse(&place.blob(hash)?, &what, "manifest")?;
            match document {
                Document { manifests: Some(inner), .. } => self.index(place, inner, &name, depth + 1)?,
                Document { config: Some(config), layers, .. } => {
                    self.manifest(place, hash, name, &config, layers.unwrap_or_default())?;
                }
                _ => self.others.push(format!("something of the type `{}`", descriptor.media_type)),
            }
        }
        Ok(())
    }

    fn manifest(
        &mut self,
        place: &Place,
        hash: Sha256,
        name: String,
        config: &Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<(), OciError> {
        let config_hash = digest(&config.digest)?;
        let config = parse(&place.blob(config_hash)?, &format!("`{}`", blob(config_hash)), "configuration")?;
        self.image(name, hash, config, layers.len(), |number, plain| {
            let layer = &layers[number];
            if !LAYER_TYPES.iter().any(|known| layer.media_type.starts_with(known)) {
                return Err(OciError::LayerType(layer.media_type.clone()));
            }
            let packed = digest(&layer.digest)?;
            Ok(Layer { name: blob(packed), packed: Some((packed, layer.size)), plain })
        })
    }

    fn saved(&mut self, place: &Place, saved: Saved) -> Result<(), OciError> {
        self.seen += 1;
        if self.seen > MAX_IMAGES {
            return Err(OciError::TooMany { what: "images", most: MAX_IMAGES });
        }
        let what = format!("`{}`", saved.config);
        let bytes = place.text(&saved.config)?.ok_or_else(|| OciError::Missing { what: what.clone() })?;
        let hash = Sha256::of(&bytes);
        let config = parse(&bytes, &what, "configuration")?;
        let name = saved.repo_tags.unwrap_or_default().join(" = ");
        self.image(name, hash, config, saved.layers.len(), |number, plain| {
            Ok(Layer { name: saved.layers[number].clone(), packed: None, plain })
        })
    }

    fn image(
        &mut self,
        name: String,
        digest_of: Sha256,
        config: ImageConfig,
        count: usize,
        layer: impl Fn(usize, Sha256) -> Result<Layer, OciError>,
    ) -> Result<(), OciError> {
        if !self.fits(&config.os, &config.architecture) {
            return Ok(());
        }
        if count > MAX_LAYERS {
            return Err(OciError::TooMany { what: "layers", most: MAX_LAYERS });
        }
        let hashes = &config.rootfs.diff_ids;
        if hashes.len() != count {
            return Err(OciError::Layers { layers: count, hashes: hashes.len() });
        }
        let layers = hashes.iter().enumerate().map(|(number, plain)| layer(number, digest(plain)?));
        let layers = layers.collect::<Result<_, _>>()?;
        let name = if name.is_empty() { format!("sha256:{digest_of}") } else { name };
        self.found.push((name, Image { digest: digest_of, config, layers }));
        Ok(())
    }

    /// Whether it is for our guests; if not, it is remembered for a message.
    fn fits(&mut self, os: &str, architecture: &str) -> bool {
        let fits = (os, architecture) == (OS, ARCHITECTURE);
        // What build tools attach to an image says `unknown`.
        if !fits && os != "unknown" {
            let platform = format!("{os}/{architecture}");
            self.others.extend((!self.others.contains(&platform)).then_some(platform));
        }
        fits
    }
}

impl Image {
    /// What the lock pins: the hash of the manifest, or where there is none that of the configuration.
    pub fn digest(&self) -> Sha256 {
        self.digest
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Makes a layer plain in `scratch`, and checks its hashes.
    pub fn spool(&self, place: &Place, number: usize, scratch: &Path) -> Result<Spooled, OciError> {
        let layer = &self.layers[number];
        let what = || format!("layer {} (`{}`)", number + 1, layer.name);
        let (file, _) = place.file(&layer.name)?.ok_or_else(|| OciError::Missing { what: what() })?;
        let spooled = spool::spool(file, scratch.join(format!("layer-{number}")))?;
        if layer.packed.is_some_and(|packed| packed != (spooled.packed, spooled.packed_size)) {
            return Err(OciError::Hash { what: what(), found: spooled.packed });
        }
        if layer.plain != spooled.plain {
            return Err(OciError::Hash { what: format!("{}, unpacked,", what()), found: spooled.plain });
        }
        Ok(spooled)
    }

    /// What it says of its program.
    pub fn into_config(self) -> Config {
        self.config.config.unwrap_or_default()
    }
}

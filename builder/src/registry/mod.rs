//! Images in registries (OCI Distribution Specification 1.1): what stands under an image's name when a rack is locked,
//! and its files, which the lock pins, for the store. What comes is trusted only after its hash has been checked.

mod session;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr};

use rackstick::from::{
    made_from,
    oci::{MAX_TEXT_BYTES, Named, OciError, named},
};
use rackstick_image::{
    digest::Sha256,
    lock::{Blob, Input, Lock},
    recipe::{Archive, From, Rack, Root},
    reference::{Reference, ReferenceError, Version},
};

pub use self::session::{ACCEPT, ChallengeError, Session};
use crate::{
    archive::Mirrors,
    progress::Progress,
    store::{Client, HttpError, Store, StoreError, Want},
};

/// The folder of `rackstick vendor`'s that has what comes from registries.
pub const FOLDER: &str = "registry";
/// Indexes within indexes at most: stops a registry that leads around in circles.
const MAX_DEPTH: usize = 4;

/// Why an image of a registry can't be had.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It has no name.
    #[error("`{reference}` names no image in a registry: {source}")]
    Reference {
        /// What it is called.
        reference: String,
        /// Why not.
        source: ReferenceError,
    },
    /// The registry does not give it.
    #[error("the image {reference} can't be had")]
    Http {
        /// Which.
        reference: String,
        /// Why not.
        source: HttpError,
    },
    /// It gives something else.
    #[error("the image {reference} {source}")]
    Oci {
        /// Which.
        reference: String,
        /// What is wrong.
        source: OciError,
    },
    /// It gives another.
    #[error(
        "the registry answers with something else when it is asked for {reference}: it has the hash {found}, not {wanted}"
    )]
    Other {
        /// Which.
        reference: String,
        /// What was asked for.
        wanted: Sha256,
        /// What came.
        found: Sha256,
    },
    /// It was deleted there.
    #[error(
        "the registry no longer has all files of {reference}: either take the image that it has now, with `rackstick lock --update`, \
         or name with --mirror a folder that `rackstick vendor` filled while they were there"
    )]
    Gone {
        /// Which.
        reference: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The images that a rack has from registries. One that `previous` has stays as it is there; for others the registry is
/// asked what it is now.
pub fn pin(rack: &Rack, previous: Option<&Lock>) -> Result<BTreeMap<String, Input>, RegistryError> {
    let mut pinned: BTreeMap<String, Input> = BTreeMap::new();
    for (name, from) in made_from(rack) {
        let From::Root(Root { archive: Archive::Registry(reference), .. }) = from else { continue };
        let reference = &reference.value;
        let same = |input: &&Input| matches!(input, Input::Registry { reference: other, .. } if other == reference);
        // Under whatever name: one lock has one digest for a reference.
        let before = previous.into_iter().flat_map(|lock| lock.inputs.values());
        let known = before.chain(pinned.values()).find(same).cloned();
        pinned.insert(name.clone(), known.map_or_else(|| ask(reference), Ok)?);
    }
    Ok(pinned)
}

/// What a registry has under this name.
fn ask(text: &str) -> Result<Input, RegistryError> {
    let reference = parse(text)?;
    let client = Client::of_registry(Session::new(&reference));
    let root = root(&reference);
    let mut version = reference.version;
    for _ in 0..MAX_DEPTH {
        let bytes = client.read(&format!("{root}/manifests/{version}"), MAX_TEXT_BYTES);
        let bytes = bytes.map_err(|source| RegistryError::Http { reference: text.to_owned(), source })?;
        let sha256 = Sha256::of(&bytes);
        if let Version::Digest(wanted) = version
            && wanted != sha256
        {
            return Err(RegistryError::Other { reference: text.to_owned(), wanted, found: sha256 });
        }
        match named(&bytes).map_err(|source| RegistryError::Oci { reference: text.to_owned(), source })? {
            Named::Index(manifest) => version = Version::Digest(manifest),
            Named::Image(blobs) => {
                let manifest = Blob { sha256, size: bytes.len() as u64 };
                return Ok(Input::Registry { reference: text.to_owned(), manifest, blobs });
            }
        }
    }
    let source = OciError::TooMany { what: "indexes within indexes", most: MAX_DEPTH };
    Err(RegistryError::Oci { reference: text.to_owned(), source })
}

/// Sees to it that what a lock's inputs have from registries is in the store, unaltered. `given` are the mirrors of the
/// command line, of which folders may have it too. Needs no network if it is there already.
pub fn obtain<'a>(
    inputs: impl IntoIterator<Item = &'a Input>,
    given: &[String],
    store: &Store,
    progress: &Progress,
) -> Result<(), RegistryError> {
    for input in inputs {
        let Input::Registry { reference: name, .. } = input else { continue };
        let reference = parse(name)?;
        let client = Client::of_registry(Session::new(&reference));
        let mirrors = Mirrors::of_registry(given, FOLDER, &root(&reference));
        match store.obtain(&client, &wants(input), &mirrors, progress) {
            Err(StoreError::Gone(_)) => return Err(RegistryError::Gone { reference: name.clone() }),
            result => result?,
        }
    }
    Ok(())
}

/// What of an input is in a registry, as the store takes it.
pub fn wants(input: &Input) -> Vec<Want> {
    let manifest = input.blobs().next().map(|manifest| manifest.sha256);
    let mut wants: Vec<Want> = Vec::new();
    for Blob { sha256, size } in input.blobs() {
        let kind = if Some(*sha256) == manifest { "manifests" } else { "blobs" };
        // Layers may be the same, empty ones above all.
        if wants.iter().all(|want| want.sha256 != *sha256) {
            wants.push(Want {
                name: input.path().to_owned(),
                archive: FOLDER.to_owned(),
                path: format!("{kind}/sha256:{sha256}"),
                size: *size,
                sha256: *sha256,
            });
        }
    }
    wants
}

fn parse(text: &str) -> Result<Reference, RegistryError> {
    text.parse().map_err(|source| RegistryError::Reference { reference: text.to_owned(), source })
}

/// The repository's URL.
fn root(reference: &Reference) -> String {
    let Reference { registry, repository, .. } = reference;
    let scheme = if is_plain(registry) { "http" } else { "https" };
    format!("{scheme}://{registry}/v2/{repository}")
}

/// Whether a registry is on this very machine: only then it needs no certificate, as for all tools.
fn is_plain(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

//! The JSON texts of an image, as far as they are of use here. OCI Image Format Specification 1.1; Docker's image
//! manifest 2.2 and the `manifest.json` of `docker save` have the same fields.

use rackstick_image::digest::Sha256;
use serde::{Deserialize, de::DeserializeOwned};

use super::OciError;

/// What names a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub platform: Option<Platform>,
    pub annotations: Option<Annotations>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
}

/// An index or a manifest: told apart by what they have.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Document {
    /// Of an index.
    pub manifests: Option<Vec<Descriptor>>,
    /// Of a manifest.
    pub config: Option<Descriptor>,
    /// Of a manifest.
    pub layers: Option<Vec<Descriptor>>,
}

/// An image in the `manifest.json` of `docker save`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// An image's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `linux`.
    pub os: String,
    /// `amd64`.
    pub architecture: String,
    /// What is started in it.
    pub config: Option<Config>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// The layers' hashes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Of the plain archives, lowest first.
    pub diff_ids: Vec<String>,
}

/// What an image says of its program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// `user`, `uid`, with `:group` or without.
    pub user: Option<String>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// The command's first words.
    pub entrypoint: Option<Vec<String>>,
    /// Its other words.
    pub cmd: Option<Vec<String>>,
    /// Where it is started.
    pub working_dir: Option<String>,
    /// `SIGQUIT`, `3`.
    pub stop_signal: Option<String>,
}

pub fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str, kind: &'static str) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Json { what: what.to_owned(), kind, source })
}

/// `sha256:` and 64 digits.
pub fn digest(text: &str) -> Result<Sha256, OciError> {
    let known = text.strip_prefix("sha256:").and_then(|digits| digits.parse().ok());
    known.ok_or_else(|| OciError::Digest(text.chars().take(100).collect()))
}

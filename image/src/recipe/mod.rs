//! Recipes: the TOML files in git that say what a rack is. Parsed strictly; everything wrong is reported at once, each
//! with its place and a hint. Every key stands in `docs/recipes.md`.

mod accounts;
mod bases;
mod cmdline;
mod commands;
mod disks;
mod error;
mod forward;
mod from;
mod generation;
mod guests;
mod health;
mod image;
mod images;
mod load;
mod mistaken;
mod names;
mod networks;
mod order;
mod rack;
mod reader;
mod region;
mod repositories;
pub mod schema;
mod secrets;
mod shapes;
mod templates;
#[cfg(test)]
mod tests;
mod units;
mod vars;
mod volumes;
mod warnings;

pub use accounts::{ID_MAX, UID_MAX};
pub use bases::{BASES, RACK_BASE};
pub use error::{Diagnostic, Diagnostics, LoadError, Place, Placed, Source};
pub use generation::{GenerationError, mac, manifest};
pub use guests::VCPUS_MAX;
pub use image::{Archive, Compression, Content, Disk, File, From, Group, Image, Named, Owner, Root, Secret, User};
pub use load::{RECIPE_MAX, load};
pub use names::{NAME_MAX, NETWORK_NAME_MAX, VERSION_MAX, closest, is_name, name_rule};
pub use rack::{Foreign, Guest, Network, Rack, Repository, Volume};
pub use repositories::is_url as is_archive_url;
pub use units::{MEMORY_MAX_MIB, MEMORY_MIN_MIB};
pub use vars::Var;

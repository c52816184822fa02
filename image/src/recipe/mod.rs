//! Recipes: the TOML files in git that say what a rack is. Parsed strictly; everything wrong is reported at once, each
//! with its place and a hint.

mod error;
mod image;
mod rack;

pub use error::{Diagnostic, Diagnostics, LoadError, Place, Placed, Source};
pub use image::{Content, File, Image};
pub use rack::{Guest, Network, Rack};

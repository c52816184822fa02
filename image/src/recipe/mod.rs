//! Recipes: the TOML files in git that say what a rack is. Parsed strictly; everything wrong is reported at once, each
//! with its place and a hint.

mod error;

pub use error::{Diagnostic, Diagnostics, Place, Source};

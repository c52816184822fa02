//! `rackstick schema rack|image`: the JSON schema of recipes, for editors.

use rackstick_image::recipe::schema;

use crate::{output, report};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick schema rack > rack.schema.json\n",
    "  rackstick schema image > image.schema.json\n",
);

/// Print the JSON schema of recipes, for editors
///
/// Editors with a language server for TOML complete and check a recipe by its schema, if its first line is like
/// `#:schema rack.schema.json`.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The kind of recipe
    #[arg(value_enum)]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Rack recipes
    Rack,
    /// Image recipes
    Image,
}

/// Prints it.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let schema = match args.kind {
        Kind::Rack => schema::rack(),
        Kind::Image => schema::image(),
    };
    output::write(format!("{schema:#}\n").as_bytes())?;
    Ok(())
}

//! `rackstick build RECIPE [-o DIR] [--mirror URL]`: from a recipe to `<rack>_<version>.img`, its manifest, and what
//! else lies beside it.

use std::{fmt, fs, io, num::NonZero, path::PathBuf, time::Instant};

use rackstick::layers::stage::ids;
use rackstick_image::{recipe, sector::SectorSize};
use serde::Serialize;

use super::MirrorArgs;
use crate::{
    archive::{self, Mirrors},
    generation::{self, Inputs},
    lock, output, parallel,
    progress::Progress,
    registry, report,
    runtime::Runtime,
    store::Store,
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick build recipes/lab.toml\n",
    "  rackstick build recipes/lab.toml -o /srv/images --quiet\n",
    "  rackstick build recipes/lab.toml --mirror vendor\n",
    "  rackstick build recipes/lab.toml --sector-size 4096\n",
    "  rackstick build recipes/lab.toml --twice\n",
);

/// Build a rack's disk image
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
    /// Where the image goes
    #[arg(short, long, value_name = "DIR", default_value = "out")]
    output: PathBuf,
    #[command(flatten)]
    from: MirrorArgs,
    /// How many threads unpack packages at once; as many as there are CPUs if not given. The image is the same
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,
    /// Bytes of a logical block of the disk that the image is for, 512 or 4096; see `lsblk -o NAME,LOG-SEC`
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = sector_size)]
    sector_size: SectorSize,
    /// Make every layer a second time, at another time of day and with other process ids, and fail if one becomes
    /// another
    #[arg(long)]
    twice: bool,
    /// Write the image compressed too, as `.img.zst`
    #[arg(long)]
    zst: bool,
}

fn sector_size(text: &str) -> Result<SectorSize, String> {
    let known = text.parse().ok().and_then(SectorSize::from_bytes);
    known.ok_or_else(|| "disks have 512 or 4096; `lsblk -o NAME,LOG-SEC` shows which".to_owned())
}

/// The output folder can't be made.
#[derive(Debug, thiserror::Error)]
#[error("can't make the output folder {}: {source}; name another with -o DIR", .path.display())]
struct OutputError {
    path: PathBuf,
    source: io::Error,
}

/// Builds the image.
pub fn run(args: Args) -> Result<(), report::Error> {
    let started = Instant::now();
    let progress = Progress::stderr();
    let rack = recipe::load(&args.recipe)?;
    report::warn(&rack.warnings);
    // What would fail at the end fails now.
    let runtime = Runtime::find()?;
    fs::create_dir_all(&args.output).map_err(|source| OutputError { path: args.output.clone(), source })?;
    let locked = lock::path(&args.recipe).exists();
    let store = Store::open()?;
    let lock = lock::for_build(&args.recipe, &rack, &args.from.mirror, &store, &progress)?;
    if !locked {
        let (path, packages) = (lock::path(&args.recipe), lock.packages().count());
        output::say(format_args!("{}: written, {packages} packages; keep it in git", path.display()))?;
    }
    // A wrong one is said even if nothing has to be fetched.
    let mirrors = args.from.mirrors(&lock)?;
    let packages = archive::places(lock.own(), &store);
    let jobs = args.jobs.map_or_else(parallel::cpus, NonZero::get);
    let inputs = Inputs {
        recipe: &args.recipe,
        rack: &rack,
        lock: &lock,
        packages: &packages,
        runtime: &runtime,
        store: &store,
        jobs,
        sector: args.sector_size,
        twice: args.twice,
        zst: args.zst,
    };
    let now = generation::Now::read(&inputs, &args.output)?;
    // To compare, layers must be made.
    let there = || if args.twice { Ok(None) } else { now.is_there(&inputs) };
    let built = match there()? {
        Some(built) => built,
        None => {
            let place = generation::take_place(&inputs, &args.output, &progress)?;
            // The build that had it may have made the same.
            match there()? {
                Some(built) => built,
                None => {
                    obtain(&inputs, &now, &args.from, &mirrors, &progress)?;
                    generation::build(&inputs, now, &args.output, place, &progress)?
                }
            }
        }
    };
    output::result(&Image {
        lock: lock::path(&args.recipe),
        lock_written: !locked,
        rack: &rack.name,
        version: &rack.version,
        manifest: built.image.with_extension("json"),
        image: built.image,
        up_to_date: built.up_to_date,
        allocated_bytes: built.allocated,
        uki_bytes: built.uki_size,
        seconds: started.elapsed().as_secs_f64(),
    })?;
    Ok(())
}

/// Fetches what has to be made anew from, and unpacks it.
fn obtain(
    inputs: &Inputs,
    now: &generation::Now,
    from: &MirrorArgs,
    mirrors: &Mirrors,
    progress: &Progress,
) -> Result<(), report::Error> {
    let Inputs { rack, lock, store, jobs, .. } = *inputs;
    if !now.needs_no_packages(inputs)? {
        // Scripts run as other users; a whole disk has none.
        if rack.images.values().any(|image| image.disk().is_none()) {
            ids::check()?;
        }
        archive::obtain(lock, mirrors, store, progress)?;
        store.unpack(&archive::wants(lock), jobs, progress)?;
    }
    Ok(registry::obtain(now.needed(inputs)?, &from.mirror, store, progress)?)
}

/// What was built.
#[derive(Serialize)]
struct Image<'a> {
    lock: PathBuf,
    lock_written: bool,
    rack: &'a str,
    version: &'a str,
    image: PathBuf,
    manifest: PathBuf,
    up_to_date: bool,
    allocated_bytes: u64,
    uki_bytes: u64,
    seconds: f64,
}

impl fmt::Display for Image<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (image, disk, uki) = (self.image.display(), self.allocated_bytes >> 20, self.uki_bytes >> 20);
        let how = if self.up_to_date { "up to date, found so" } else { "built" };
        writeln!(f, "{image}: {disk} MiB on disk, UKI {uki} MiB, {how} in {:.1} s", self.seconds)?;
        write!(f, "Try it with: rackstick run {image}")
    }
}

//! `rackstick build RECIPE [-o DIR] [--mirror URL]`: from a recipe to `<rack>_<version>.img` and its manifest.

use std::{fs, io, path::PathBuf, time::Instant};

use rackstick_image::{recipe, sector::SectorSize};

use crate::{
    archive::{self, Mirrors},
    generation::{self, Inputs},
    lock,
    progress::Progress,
    report,
    runtime::Runtime,
};

/// Build a rack's disk image
#[derive(clap::Args)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
    /// Where the image goes
    #[arg(short, long, value_name = "DIR", default_value = "out")]
    output: PathBuf,
    /// Root of a Debian archive, like http://HOST/debian, in place of those of this machine's apt; may be repeated.
    /// Security updates come from `debian-security` beside it, unless that is given too
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    /// How many threads unpack packages at once; as many as there are CPUs if not given. The image is the same
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Bytes of a logical block of the disk that the image is for, 512 or 4096; see `lsblk -o NAME,LOG-SEC`
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = sector_size)]
    sector_size: SectorSize,
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
    let lock = lock::for_build(&args.recipe, &rack, &args.mirror, &progress)?;
    if !locked {
        println!("{}: written, {} packages; keep it in git", lock::path(&args.recipe).display(), lock.packages.len());
    }
    let mirrors = Mirrors::choose(&args.mirror)?;
    let packages = archive::obtain(&lock, &mirrors, &progress)?;
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let inputs =
        Inputs { rack: &rack, lock: &lock, packages: &packages, runtime: &runtime, jobs, sector: args.sector_size };
    let built = generation::build(&inputs, &args.output, &progress)?;
    println!(
        "{}: {} MiB on disk, UKI {} MiB, built in {:.1} s",
        built.image.display(),
        built.allocated >> 20,
        built.uki_size >> 20,
        started.elapsed().as_secs_f64()
    );
    println!("Try it with: rackstick run {}", built.image.display());
    Ok(())
}

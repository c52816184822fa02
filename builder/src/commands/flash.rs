//! `rackstick flash [IMAGE [DEVICE]]`: lists disks, or writes an image to one.

use std::{
    fmt::{self, Write as _},
    io::{self, BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use rackstick_image::secrets::Values;

use crate::{
    flash::{self, Disk, Image, Refusal, System, Target},
    image::{self, ImageError},
    output,
    progress::Progress,
    report,
    secrets::{Filling, SecretsError, Wanted},
};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick flash\n",
    "  rackstick flash out/lab_2026.11.1.img\n",
    "  rackstick flash out/lab_2026.11.1.img sdb\n",
    "  rackstick flash out/lab_2026.11.1.img sdb --confirm sdb\n",
    "  rackstick flash out/lab_2026.11.1.img sdb --secrets secrets\n",
);

/// Write an image to a disk, or list the disks that there are
///
/// Without a device it lists the disks that can be flashed (with this image), and why others can't. It asks before it
/// writes, reads back what it wrote, and makes the disk bootable last.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The disk image, also compressed (`.img.zst`)
    image: Option<PathBuf>,
    /// The disk, like sdb or /dev/sdb. All that is on it is lost
    device: Option<PathBuf>,
    /// For scripts: the disk's name, like sdb, instead of typing it when asked
    #[arg(long, value_name = "NAME", requires = "device")]
    confirm: Option<String>,
    /// A folder with the secrets that guests want, as files `<guest>/<secret>`; they are put onto the disk, and never
    /// into the image
    #[arg(long, value_name = "DIR", requires = "device")]
    secrets: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum FlashError {
    #[error("{disk} can't be flashed: {source}")]
    Refused { disk: String, source: Refusal },
    #[error("{0} is another disk than a moment ago; nothing was written: begin anew")]
    Changed(String),
    #[error("nobody can be asked, since standard input is no terminal; give --confirm {0} if all on {0} may be lost")]
    NobodyToAsk(String),
    #[error("the disk is {disk}, and `{said}` was given; nothing was written")]
    OtherName { disk: String, said: String },
    #[error("can't watch for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("can't ask: {0}")]
    Ask(#[source] io::Error),
}

/// Lists or flashes.
pub fn run(args: Args) -> Result<(), report::Error> {
    let (system, progress) = (System::this(), Progress::stderr());
    let Some(device) = &args.device else {
        let disks = system.disks()?;
        let largest = disks.iter().map(|disk| disk.size).max().unwrap_or(u64::MAX);
        let image = args.image.as_deref().map(|path| Image::open(path, largest, &progress)).transpose()?;
        return Ok(output::answer(&listed(&system, &disks, image.as_ref())?)?);
    };
    let Some(path) = &args.image else { return Ok(()) };
    write(&system, path, device, &args, &progress)
}

fn write(system: &System, path: &Path, device: &Path, args: &Args, progress: &Progress) -> Result<(), report::Error> {
    let started = Instant::now();
    let disk = system.find(device)?;
    let refused = |source| FlashError::Refused { disk: disk.name.clone(), source };
    // What is known before a large image is unpacked.
    if let Some(why) = flash::refusal(system, &disk, None)? {
        return Err(refused(why).into());
    }
    let image = Image::open(path, disk.size, progress)?;
    if let Some(why) = flash::refusal(system, &disk, Some(&image.used))? {
        return Err(refused(why).into());
    }
    let (secrets, missing) = secrets(path, &image, args.secrets.as_deref())?;
    // From here on nobody mounts it. It may be another one than before the image was unpacked, or in use since.
    let target = Target::open(&disk)?;
    let now = system.find(device)?;
    if !now.is(&disk) {
        return Err(FlashError::Changed(disk.name).into());
    }
    if let Some(why) = flash::refusal(system, &now, Some(&image.used))? {
        return Err(refused(why).into());
    }
    confirmed(&now, path, &missing, args.confirm.as_deref())?;

    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(FlashError::Signals)?;
    }
    let bytes = flash::flash(&image, secrets.as_ref(), &target, &stop, progress)?;
    output::result(&Flashed {
        disk: &disk.name,
        image: path,
        written_bytes: bytes,
        secrets_missing: missing,
        seconds: started.elapsed().as_secs_f64(),
    })?;
    Ok(())
}

/// What goes into the slot for secrets, and which secrets are not among them.
fn secrets(path: &Path, image: &Image, folder: Option<&Path>) -> Result<(Option<Filling>, Vec<String>), report::Error> {
    let file = image.file.try_clone().map_err(|source| ImageError::File { path: path.to_owned(), source });
    let wanted = file.and_then(|file| image::Disk::of(path, file)).map_err(SecretsError::from);
    let wanted = wanted.and_then(|disk| Wanted::of(&disk));
    match (folder, wanted) {
        (Some(folder), wanted) => {
            let wanted = wanted?.ok_or_else(|| SecretsError::NoSlot(path.to_owned()))?;
            let values = wanted.read(folder)?;
            let missing = wanted.missing(&values);
            Ok((Some(Filling::new(wanted, values)?), missing))
        }
        (None, Ok(Some(wanted))) => Ok((None, wanted.missing(&Values::new()))),
        // Whether an image is sound is for `verify` to say; this one has a partition table, and is flashed as it is.
        (None, Ok(None) | Err(_)) => Ok((None, Vec::new())),
    }
}

/// Shows what will be lost and what is missing, and has the disk's name typed, unless it was given beforehand.
fn confirmed(disk: &Disk, image: &Path, missing: &[String], confirm: Option<&str>) -> Result<(), FlashError> {
    let name = &disk.name;
    let mut stderr = io::stderr().lock();
    let mut shown = format!("This destroys all that is on {}:\n", described(disk));
    for line in content(disk) {
        _ = writeln!(shown, "  {line}");
    }
    if !missing.is_empty() {
        _ = writeln!(
            shown,
            "No value is given for these secrets, and their guests will wait for them (--secrets DIR gives them):\n  {}",
            missing.join(", ")
        );
    }
    stderr.write_all(shown.as_bytes()).map_err(FlashError::Ask)?;
    let said = match confirm {
        Some(said) => said.to_owned(),
        None if !io::stdin().is_terminal() => return Err(FlashError::NobodyToAsk(name.clone())),
        None => {
            write!(stderr, "Type the disk's name, {name}, to write {} to it: ", image.display())
                .map_err(FlashError::Ask)?;
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map_err(FlashError::Ask)?;
            line.trim().to_owned()
        }
    };
    if said == *name { Ok(()) } else { Err(FlashError::OtherName { disk: name.clone(), said }) }
}

/// A disk that holds the image now.
#[derive(Serialize)]
struct Flashed<'a> {
    disk: &'a str,
    image: &'a Path,
    written_bytes: u64,
    /// Those that guests of the image want and were not given.
    secrets_missing: Vec<String>,
    seconds: f64,
}

impl fmt::Display for Flashed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (disk, image, written) = (self.disk, self.image.display(), self.written_bytes >> 20);
        let seconds = self.seconds;
        write!(
            f,
            "{disk}: {image} is on it, {written} MiB written and read back in {seconds:.0} s; it can be pulled out"
        )
    }
}

/// The disks of this machine.
#[derive(Serialize)]
struct Listing {
    disks: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    size_bytes: u64,
    model: String,
    content: Vec<String>,
    /// Why it can't be flashed.
    refused: Option<String>,
    #[serde(skip)]
    described: String,
}

fn listed(system: &System, disks: &[Disk], image: Option<&Image>) -> Result<Listing, report::Error> {
    let mut listing = Listing { disks: Vec::new() };
    for disk in disks {
        let refused = flash::refusal(system, disk, image.map(|image| &image.used))?;
        listing.disks.push(Listed {
            name: disk.name.clone(),
            size_bytes: disk.size,
            model: disk.model.clone(),
            content: content(disk),
            refused: refused.map(|why| why.to_string()),
            described: described(disk),
        });
    }
    Ok(listing)
}

/// Those that can be flashed, then why others can't.
impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for disk in self.disks.iter().filter(|disk| disk.refused.is_none()) {
            lines.push(disk.described.clone());
            lines.extend(disk.content.iter().map(|line| format!("  {line}")));
        }
        if lines.is_empty() {
            lines.push("No disk can be flashed.".to_owned());
        }
        let refused = self.disks.iter().filter_map(|disk| Some((disk, disk.refused.as_ref()?)));
        let refused: Vec<String> = refused.map(|(disk, why)| format!("{}\n  {why}", disk.described)).collect();
        if !refused.is_empty() {
            lines.push(format!("\nNot these:\n{}", refused.join("\n")));
        }
        write!(f, "{}", lines.join("\n"))
    }
}

/// `sdb  14.9 GiB  USB  SanDisk Ultra`.
fn described(disk: &Disk) -> String {
    let Disk { name, bus, model, .. } = disk;
    format!("{name:<8} {:>9}  {bus:<6} {model}", size(disk.size)).trim_end().to_owned()
}

/// What is on a disk, a line each.
fn content(disk: &Disk) -> Vec<String> {
    let whole = disk.content.iter().map(|content| content.to_string());
    let parts = disk.parts.iter().map(|part| {
        let content = part.content.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        format!("{:<8} {:>9}  {content}", part.name, size(part.size))
    });
    let lines: Vec<String> = whole.chain(parts).collect();
    if lines.is_empty() { vec!["no partitions, and nothing that is known".to_owned()] } else { lines }
}

/// As disks are spoken of.
fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 30) {
        gib if gib < 1.0 => format!("{:.0} MiB", gib * 1024.0),
        gib => format!("{gib:.1} GiB"),
    }
}

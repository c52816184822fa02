//! `rackstick run IMAGE`: boots an image in QEMU with UEFI firmware, as a server or PC would boot it.

use std::{
    env, fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rackstick_api::{
    client::{Client, ClientError},
    rack::Request,
};
use rackstick_image::{
    manifest::{FORMAT, Manifest},
    sector::SectorSize,
};
use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    artifacts::{self, ArtifactError},
    image, output,
    qemu::{
        Machine, Serial, Uplink,
        accel::{Accel, Kvm},
        devices::{Disk, Nic},
        find::{FindError, Qemu, find_program, firmware},
        forward::{self, ForwardError, Rule},
    },
    report,
    secrets::{Filling, SecretsError, Wanted},
};

/// The size of the throw-away disk where the image is smaller: a rack grows its data to the disk it finds.
const DISK_GIB: u64 = 8;
/// How long the rack may take to accept the order to switch off.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the rack may take to stop its guests and switch off, under software emulation: to end one that does not want to
/// takes it 135 s.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(180);

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick run out/lab_2026.11.1.img\n",
    "  rackstick run out/lab_2026.11.1.img --disk usb --nic rtl8139 --cpus 1 --memory 2048 --screen /tmp/screen\n",
    "  rackstick run out/lab_2026.11.1.img --persist --forward 2222:22/tcp\n",
    "  rackstick run out/lab_2026.11.1.img --secrets secrets\n",
);

/// Boot an image in QEMU
///
/// Ctrl-C or SIGTERM switches the rack off cleanly; a second one stops it hard. Unix sockets go when the rack does.
/// The exit status is 0 if the rack switched itself off, 1 if it could not be started or had to be stopped hard.
///
/// To try a rack on hardware like yours, say how its disk, NICs, CPUs and memory are, for example
/// `--disk usb --nic rtl8139 --cpus 1 --memory 512 --screen /tmp/screen`. The disk's sectors are those that the image
/// was built for.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The disk image; `<its stem>.json` beside it says which ports to forward
    image: PathBuf,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    cpus: u8,
    /// What runs the rack's instructions: KVM where it can run guests inside guests, else software emulation
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    /// Hide SVM and VMX from the rack, as firmware does that has virtualization switched off
    #[arg(long)]
    no_virtualization: bool,
    /// How the disk is attached
    #[arg(long, value_enum, default_value_t = Disk::Virtio)]
    disk: Disk,
    /// The model of the NIC; given several times, there are as many, and forwards lead through the first
    #[arg(long = "nic", value_enum, default_value = "virtio")]
    nics: Vec<Nic>,
    /// Size of the disk in GiB; without it, a throw-away disk has at least 8 GiB, and a kept one the image's size
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    disk_size: Option<u64>,
    /// Write to the image itself; without it, what the rack writes is thrown away
    #[arg(long)]
    persist: bool,
    /// A folder with the secrets that guests want, as files `<guest>/<secret>`; the image gets them only with --persist
    #[arg(long, value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// Lead a port of this machine's loopback address to a port of the rack, beside or instead of the manifest's
    #[arg(long = "forward", value_name = "HOSTPORT:PORT/PROTO")]
    forwards: Vec<Rule>,
    /// Where to put the Unix socket of the rack's API
    #[arg(long, value_name = "PATH")]
    api: Option<PathBuf>,
    /// Write the serial console to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Leave out the serial port, which most PCs lack
    #[arg(long, conflicts_with = "console")]
    no_serial: bool,
    /// Give the rack a screen, and show it by VNC on this Unix socket, as with `vncviewer PATH`
    #[arg(long, value_name = "PATH")]
    screen: Option<PathBuf>,
    /// Where to put the Unix socket of QEMU's monitor (QMP), through which devices are plugged and pulled
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    extra: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AccelChoice {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("can't {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no manifest of format {FORMAT}; build the image again with this version", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error("{} is no disk image: it has no partition table (GPT); unpack an `.img.zst` before, with `zstd -d`", .0.display())]
    NoImage(PathBuf),
    #[error("{} was built for disks with 4096-byte sectors, which QEMU's SATA disks can't have; take another `--disk`", .0.display())]
    NoSuchSectors(PathBuf),
    #[error("`--nic none` can't stand beside other NICs")]
    NicAndNone,
    #[error("a rack without NIC can't be reached through `--forward`; leave out one of both")]
    ForwardWithoutNic,
    #[error("--disk-size {wanted} is less than the image's own {image} GiB")]
    TooSmall { wanted: u64, image: u64 },
    #[error("KVM can't be used because {0}; leave out `--accel kvm`")]
    NoKvm(String),
    #[error("{} is there and is no socket; name another path, or delete it", .0.display())]
    NoSocket(PathBuf),
    #[error("{} is the socket of somebody who listens, perhaps of another rack that runs; name another path", .0.display())]
    SocketInUse(PathBuf),
    #[error("`{0}` is not in PATH; install {1}")]
    NoTool(&'static str, &'static str),
    #[error("can't start {}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("qemu-img could not make the throw-away disk {}: {said}", path.display())]
    Overlay { path: PathBuf, said: String },
    #[error("qemu-io could not put the secrets onto the throw-away disk {}: {said}", path.display())]
    Secrets { path: PathBuf, said: String },
    #[error(transparent)]
    Values(#[from] SecretsError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("QEMU ended with {0}; it says why above")]
    Failed(ExitStatus),
    #[error("the rack was not started: a signal came before")]
    Early,
    #[error("the rack was stopped hard: {0}")]
    Hard(String),
    #[error("can't watch over QEMU")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

fn file<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, RunError> {
    result.map_err(|source| RunError::File { action, path: path.to_owned(), source })
}

/// Boots the image and waits until the rack is off.
pub fn run(args: Args) -> Result<(), report::Error> {
    Ok(boot(&args)?)
}

fn boot(args: &Args) -> Result<(), RunError> {
    let image = file("find the image", &args.image, fs::canonicalize(&args.image))?;
    let sector = sector_of(&image, args.disk)?;
    let nics = nics(args)?;
    let manifest = read_manifest(&image)?;
    let (accel, why) = choose(args.accel)?;
    let qemu = Qemu::find()?;
    qemu.check(accel, &why)?;
    let (code, variables) = firmware()?;
    // Without a NIC nothing leads in.
    let forwards = match nics[..] {
        [] => Vec::new(),
        _ => forward::resolve(manifest.as_ref(), &args.forwards, forward::is_free)?,
    };

    // Who listens there may let this wait for ever, and it makes nothing.
    let named = [&args.api, &args.screen, &args.qmp].into_iter().flatten();
    let _sockets = named.map(|path| Socket::at(path)).collect::<Result<Vec<_>, _>>()?;
    // From here on no signal ends this command before what it makes is gone again, and QEMU with it.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(RunError::Watch)?;
    let folder = env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let scratch = file("make a folder in", &folder, tempfile::Builder::new().prefix("rackstick-").tempdir_in(&folder))?;
    let own_variables = scratch.path().join("variables.fd");
    file("copy the firmware's variables to", &own_variables, fs::copy(variables, &own_variables))?;
    let (disk, disk_format) = prepare_disk(args, &image, scratch.path())?;
    if let Some(folder) = &args.secrets {
        give_secrets(folder, &image, &disk, scratch.path(), args.persist)?;
    }

    let machine = Machine {
        name: manifest.as_ref().map_or_else(|| "image".to_owned(), |manifest| manifest.rack.clone()),
        accel,
        cpus: args.cpus,
        memory_mib: args.memory,
        firmware: code.to_owned(),
        variables: own_variables,
        disk,
        disk_format,
        throw_away: !args.persist,
        disk_bus: args.disk,
        sector,
        virtualization: !args.no_virtualization,
        nics,
        uplink: manifest.as_ref().map_or(Uplink::Dhcp, Uplink::of),
        forwards,
        api: args.api.clone().unwrap_or_else(|| scratch.path().join("api.sock")),
        serial: match &args.console {
            Some(path) => Serial::File(path.clone()),
            None if args.no_serial => Serial::Absent,
            None => Serial::Stdout,
        },
        screen: args.screen.clone(),
        qmp: args.qmp.clone(),
    };
    if signals.pending().next().is_some() {
        return Err(RunError::Early);
    }
    let why = reason(&why);
    output::tell(format!("booting {} with {accel}{why}, QEMU {}", image.display(), qemu.version));
    if manifest.is_none() {
        output::tell("no manifest beside the image: only ports named by --forward are forwarded");
    }
    machine.forwards.iter().for_each(output::tell);
    output::tell(format!("api {}", machine.api.display()));
    watch(&qemu.path, &machine, &args.extra, signals)
}

fn reason(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" because {why}") }
}

/// The size of the image's sectors. Something else than a disk image would make the firmware search for minutes.
fn sector_of(image: &Path, disk: Disk) -> Result<SectorSize, RunError> {
    match file("read", image, fs::File::open(image).and_then(|image| SectorSize::of_image(&image)))? {
        None => Err(RunError::NoImage(image.to_owned())),
        Some(sector) if !disk.takes(sector) => Err(RunError::NoSuchSectors(image.to_owned())),
        Some(sector) => Ok(sector),
    }
}

/// The NICs; `none` is none.
fn nics(args: &Args) -> Result<Vec<Nic>, RunError> {
    match &args.nics[..] {
        [Nic::None] if args.forwards.is_empty() => Ok(Vec::new()),
        [Nic::None] => Err(RunError::ForwardWithoutNic),
        nics if nics.contains(&Nic::None) => Err(RunError::NicAndNone),
        nics => Ok(nics.to_owned()),
    }
}

fn read_manifest(image: &Path) -> Result<Option<Manifest>, RunError> {
    let path = image.with_extension("json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| RunError::Manifest { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RunError::File { action: "read", path, source }),
    }
}

/// The accelerator, and why it is not KVM.
fn choose(choice: AccelChoice) -> Result<(Accel, String), RunError> {
    match (choice, Kvm::probe().nests()) {
        (AccelChoice::Auto | AccelChoice::Kvm, Ok(())) => Ok((Accel::Kvm, String::new())),
        (AccelChoice::Auto, Err(why)) => Ok((Accel::Tcg, why)),
        (AccelChoice::Kvm, Err(why)) => Err(RunError::NoKvm(why)),
        (AccelChoice::Tcg, _) => Ok((Accel::Tcg, "it was asked for".to_owned())),
    }
}

/// The file that becomes the disk, and its format.
fn prepare_disk(args: &Args, image: &Path, scratch: &Path) -> Result<(PathBuf, &'static str), RunError> {
    const GIB: u64 = 1 << 30;
    let size = file("read", image, fs::metadata(image))?.len();
    let wanted = args.disk_size.map(|gib| gib * GIB);
    if let (Some(wanted), Some(bytes)) = (args.disk_size, wanted)
        && bytes < size
    {
        return Err(RunError::TooSmall { wanted, image: size.div_ceil(GIB) });
    }
    if args.persist {
        if let Some(bytes) = wanted {
            file("grow", image, fs::File::options().write(true).open(image).and_then(|image| image.set_len(bytes)))?;
        }
        return Ok((image.to_owned(), "raw"));
    }
    let tool = find_program("qemu-img").ok_or(RunError::NoTool("qemu-img", "qemu-utils"))?;
    let path = scratch.join("disk.qcow2");
    let bytes = wanted.unwrap_or((DISK_GIB * GIB).max(size));
    let output = Command::new(&tool)
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([image, &path])
        .arg(bytes.to_string())
        // So that Ctrl-C is told by us, and not as a failure of this.
        .process_group(0)
        .output()
        .map_err(|source| RunError::Start { path: tool, source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(RunError::Overlay { path, said });
    }
    Ok((path, "qcow2"))
}

/// Puts secrets onto the disk that the rack will find.
fn give_secrets(folder: &Path, image: &Path, disk: &Path, scratch: &Path, persist: bool) -> Result<(), RunError> {
    let opened = image::Disk::open(image).map_err(SecretsError::from)?;
    let wanted = Wanted::of(&opened)?.ok_or_else(|| SecretsError::NoSlot(image.to_owned()))?;
    let values = wanted.read(folder)?;
    let filling = Filling::new(wanted, values)?;
    if persist {
        artifacts::clear(image)?;
        return Ok(filling.write(image)?);
    }
    const PIECE: &str = "secrets";
    // The throw-away disk is a qcow2 file, which QEMU's own tool writes.
    let tool = find_program("qemu-io").ok_or(RunError::NoTool("qemu-io", "qemu-utils"))?;
    for (at, bytes) in filling.pieces() {
        // By a name of its own: qemu-io splits its commands at blanks.
        let piece = scratch.join(PIECE);
        file("write", &piece, fs::write(&piece, bytes))?;
        let command = format!("write -q -s {PIECE} {at} {}", bytes.len());
        let output = Command::new(&tool).args(["-f", "qcow2", "-c", &command]).arg(disk).current_dir(scratch).output();
        file("delete", &piece, fs::remove_file(&piece))?;
        let output = output.map_err(|source| RunError::Start { path: tool.clone(), source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(RunError::Secrets { path: disk.to_owned(), said });
        }
    }
    Ok(())
}

/// What can happen while QEMU runs.
enum Event {
    Signal,
    Ordered(Result<(), ClientError>),
    Ended(io::Result<ExitStatus>),
}

fn watch(qemu: &Path, machine: &Machine, extra: &[String], mut signals: Signals) -> Result<(), RunError> {
    let (sender, events) = mpsc::channel();
    // QEMU dies with this thread, which is this command's first.
    let setpriv = find_program("setpriv").ok_or(RunError::NoTool("setpriv", "util-linux"))?;
    let mut child = Command::new(&setpriv)
        .args(["--pdeathsig", "KILL", "--"])
        .arg(qemu)
        .args(machine.arguments())
        .args(extra)
        .stdin(Stdio::null())
        // Ctrl-C reaches this command only.
        .process_group(0)
        .spawn()
        .map_err(|source| RunError::Start { path: setpriv, source })?;
    let pidfd = match pidfd(&child) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            child.kill().and_then(|()| child.wait()).map_err(RunError::Watch)?;
            return Err(RunError::Watch(error));
        }
    };

    let ended = sender.clone();
    thread::spawn(move || ended.send(Event::Ended(child.wait())));
    let signalled = sender.clone();
    thread::spawn(move || signals.forever().all(|_| signalled.send(Event::Signal).is_ok()));
    // `sender` lives on in the threads: receiving ends only by an event.
    supervise(&machine.api, &pidfd, &sender, &events)
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("QEMU has no process id"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn supervise(
    api: &Path,
    qemu: &OwnedFd,
    sender: &mpsc::Sender<Event>,
    events: &mpsc::Receiver<Event>,
) -> Result<(), RunError> {
    let mut stopping = false;
    // Why QEMU was killed.
    let mut hard: Option<String> = None;
    loop {
        let event = if stopping && hard.is_none() {
            events.recv_timeout(POWER_OFF_LIMIT)
        } else {
            events.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        };
        let kill = match event {
            Ok(Event::Ended(status)) => {
                let status = status.map_err(RunError::Watch)?;
                return match hard {
                    Some(why) => Err(RunError::Hard(why)),
                    None if status.success() => Ok(()),
                    None => Err(RunError::Failed(status)),
                };
            }
            Ok(Event::Signal) if !stopping => {
                stopping = true;
                output::tell("switching the rack off; once more stops it hard");
                let (client, sender) = (Client::new(api, ANSWER_LIMIT), sender.clone());
                thread::spawn(move || sender.send(Event::Ordered(client.order(Request::PowerOff))));
                None
            }
            Ok(Event::Signal) => Some("a second signal came before it was off".to_owned()),
            Ok(Event::Ordered(Ok(()))) => None,
            Ok(Event::Ordered(Err(error))) => Some(format!("it can't be switched off cleanly, since {error}")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Some(format!("it was not off {} s after the order", POWER_OFF_LIMIT.as_secs()))
            }
            // Can't happen while `sender` lives; if it did, nobody would be left to tell of QEMU's end.
            Err(mpsc::RecvTimeoutError::Disconnected) => Some("nothing watches over it any more".to_owned()),
        };
        if let (Some(why), None) = (kill, &hard) {
            // QEMU may have ended by itself just now; its end is reported either way.
            match pidfd_send_signal(qemu, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => hard = Some(why),
                Err(error) => return Err(RunError::Watch(error.into())),
            }
        }
    }
}

/// A place where QEMU makes a Unix socket. It does not always remove it at its end; once that came, this does.
struct Socket<'a> {
    path: &'a Path,
    /// What an earlier run left there, which is not this one's to remove unless QEMU has replaced it.
    before: Option<Identity>,
}

/// Device, inode, and when that was last changed: a new socket may get the inode of one that is gone.
type Identity = (u64, u64, i64, i64);

impl<'a> Socket<'a> {
    /// Refuses a place where something else is: QEMU would delete it. What an earlier run left is in nobody's way.
    fn at(path: &'a Path) -> Result<Self, RunError> {
        let before = match Self::identity(path) {
            Ok(Some(_)) if UnixStream::connect(path).is_ok() => return Err(RunError::SocketInUse(path.to_owned())),
            Ok(Some(before)) => Some(before),
            Ok(None) => return Err(RunError::NoSocket(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(RunError::File { action: "look at", path: path.to_owned(), source }),
        };
        Ok(Self { path, before })
    }

    /// That of what lies there; none if it is no socket.
    fn identity(path: &Path) -> io::Result<Option<Identity>> {
        let found = fs::symlink_metadata(path)?;
        let identity = (found.dev(), found.ino(), found.ctime(), found.ctime_nsec());
        Ok(found.file_type().is_socket().then_some(identity))
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        let made = matches!(Self::identity(self.path), Ok(Some(now)) if Some(now) != self.before);
        // Who listens there now came after QEMU's end.
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if made && UnixStream::connect(self.path).is_err_and(refused) {
            // It is in nobody's way.
            let _ = fs::remove_file(self.path);
        }
    }
}

//! The two initrds, both uncompressed cpio: the host's, which is all of the host's user space, and the guests', which
//! mounts a guest's root. What they need of the kernel's modules comes with an index of just those.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use rackstick_image::{
    cpio::{self, Writer},
    manifest::{self, Manifest},
    modules,
    pieces::Pieces,
    source::SourceError,
    spares::{self, Spares},
};
use thiserror::Error;

use crate::{
    hardware::Drivers,
    kernel::{Kernel, KernelError, Modules},
    runtime::Runtime,
};

const PROGRAM: u32 = 0o755;
const DATA: u32 = 0o644;

/// Where the host looks for its own program and for the monitor.
const HOST: &str = "rackstick/rackstick-host";
const VMM: &str = "rackstick/rackstick-vmm";

/// Why an initrd can't be written.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// The archive.
    #[error(transparent)]
    Cpio(#[from] cpio::Error),
    /// The modules.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The firmware.
    #[error("can't compress firmware: {0}")]
    Firmware(#[source] io::Error),
    /// The manifest.
    #[error("can't write the manifest: {0}")]
    Manifest(#[from] serde_json::Error),
}

/// The host's initrd: runtime, then what [`drivers`] wrote, and last the manifest. `epoch`: every file's time.
pub fn host(runtime: &Runtime, drivers: &Path, manifest: &Manifest, epoch: u32) -> Result<Pieces, InitrdError> {
    let mut archive = Writer::new(Pieces::default(), epoch);
    add_console(&mut archive)?;
    for (path, file) in [(HOST, &runtime.host), (VMM, &runtime.vmm)] {
        archive.bytes(path, PROGRAM, &program(file)?)?;
    }
    archive.symlink("init", HOST)?;
    archive.symlink("sbin/modprobe", &format!("/{HOST}"))?;
    archive.append(drivers)?;
    archive.bytes(manifest::PATH.trim_start_matches('/'), DATA, &serde_json::to_vec_pretty(manifest)?)?;
    Ok(archive.finish()?)
}

/// Writes to `out` what is the same in the host's initrd of all racks with the same packages: modules, firmware, and
/// the list of both.
pub fn drivers(out: &Path, kernel: &Kernel, drivers: &Drivers, epoch: u32) -> Result<(), InitrdError> {
    let mut archive = create(out, epoch)?;
    let mut spares = add_modules(&mut archive, kernel, &drivers.modules)?;
    for (name, content) in drivers.firmware.packed().map_err(InitrdError::Firmware)? {
        let path = modules::firmware_path(name);
        archive.bytes(path.trim_start_matches('/'), DATA, &content)?;
        spares.add(path, &content);
    }
    archive.bytes(spares::PATH.trim_start_matches('/'), DATA, spares.to_text().as_bytes())?;
    written(archive.piece()?)
}

/// Writes the guests' initrd to `out`.
pub fn guest(out: &Path, runtime: &Runtime, kernel: &Kernel, epoch: u32) -> Result<(), InitrdError> {
    let mut archive = create(out, epoch)?;
    add_console(&mut archive)?;
    archive.bytes("init", PROGRAM, &program(&runtime.guest)?)?;
    add_modules(&mut archive, kernel, &kernel.modules(modules::wanted::GUEST)?)?;
    written(archive.finish()?)
}

fn create(out: &Path, epoch: u32) -> Result<Writer<BufWriter<File>>, InitrdError> {
    let file = File::create(out).map_err(cpio::Error::Output)?;
    Ok(Writer::new(BufWriter::with_capacity(1 << 20, file), epoch))
}

/// A program of ours. Read once, so that one that is replaced meanwhile is the old or the new one.
fn program(file: &Path) -> Result<Vec<u8>, InitrdError> {
    fs::read(file).map_err(|source| cpio::Error::Source(SourceError::Read { path: file.to_owned(), source }).into())
}

/// The kernel opens the console before anything has mounted a devtmpfs.
fn add_console(archive: &mut Writer<impl Write>) -> Result<(), InitrdError> {
    Ok(archive.char_device("dev/console", 0o600, 5, 1)?)
}

/// Gives the list of the modules' files.
fn add_modules(archive: &mut Writer<impl Write>, kernel: &Kernel, chosen: &Modules) -> Result<Spares, InitrdError> {
    let folder = modules::directory(&kernel.release);
    let mut spares = Spares::default();
    for (path, content) in &chosen.files {
        let path = format!("{folder}/{path}");
        archive.bytes(path.trim_start_matches('/'), DATA, content)?;
        spares.add(path, content);
    }
    let index = modules::path(&kernel.release);
    archive.bytes(index.trim_start_matches('/'), DATA, chosen.index.to_text().as_bytes())?;
    Ok(spares)
}

fn written(out: BufWriter<File>) -> Result<(), InitrdError> {
    out.into_inner().map_err(|error| cpio::Error::Output(error.into_error()))?;
    Ok(())
}

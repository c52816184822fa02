//! What a guest's monitor and the guest itself are told: the monitor's configuration file, and the cpio with the
//! guest's own behind its initrd.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use rackstick_api::guest::{self, GuestConfig};
use rackstick_image::{
    cpio,
    manifest::{Address, Guest, Health, Image, Manifest},
    secrets::Value,
};
use rackstick_vmm::config::{Config, Console, Disk, Net, Pmem, Vsock};

use super::{process, volumes};
use crate::daemon::{layers, network};

/// The lowest context id a guest can have: 0 to 2 have other meanings (vsock(7)).
const FIRST_CID: u32 = 3;
/// What each of the two console files may hold: enough for a boot, and no guest fills the host's memory.
const CONSOLE_LIMIT_KIB: u32 = 256;
/// The configuration's name in a guest's folder.
pub const CONFIG: &str = "config.json";
/// The part of the folder in which the monitor may write.
pub const WRITABLE: &str = "run";
/// The reason of the end.
pub const EXIT: &str = "run/exit.json";
/// The console's text.
pub const CONSOLE: &str = "run/console.log";
const CPIO: &str = "guest.cpio";
/// It holds secrets: only the guest's own monitor reads it.
const CPIO_MODE: u32 = 0o400;

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest names an image it does not have.
    #[error("the manifest is damaged: guest {guest} boots image `{image}`, which it does not have")]
    Image {
        /// The guest.
        guest: String,
        /// The image.
        image: String,
    },
    /// The archive.
    #[error("the guest's configuration can't be packed: {0}")]
    Cpio(#[from] cpio::Error),
    /// A file.
    #[error("{path} can't be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The vsock context id of the guest with this index.
pub fn cid(index: usize) -> u32 {
    FIRST_CID.saturating_add(u32::try_from(index).unwrap_or(u32::MAX))
}

/// Writes both files into the guest's folder and returns the monitor's. `secrets`: the values that the guest has.
pub fn write(
    manifest: &Manifest,
    index: usize,
    spec: &Guest,
    folder: &Path,
    volumes: &[volumes::Ready],
    secrets: &BTreeMap<String, Value>,
) -> Result<PathBuf, Error> {
    let image = manifest
        .images
        .get(&spec.image)
        .ok_or_else(|| Error::Image { guest: spec.name.clone(), image: spec.image.clone() })?;
    let archive = folder.join(CPIO);
    let file =
        own_file(&archive, process::uid(index)).map_err(|source| Error::Write { path: archive.clone(), source })?;
    let mut writer = cpio::Writer::new(file, 0);
    let text = json(&archive, &guest_config(manifest, spec, image))?;
    writer.bytes(guest::PATH.trim_start_matches('/'), 0o600, &text)?;
    for (name, value) in secrets {
        writer.bytes(&format!("{}/{name}", guest::SECRETS.trim_start_matches('/')), 0o400, value.bytes())?;
    }
    writer.finish()?;

    let path = folder.join(CONFIG);
    let text = json(&path, &monitor_config(index, spec, image, folder, volumes))?;
    fs::write(&path, text).map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

/// A new file that only this user reads.
fn own_file(path: &Path, uid: u32) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(CPIO_MODE).open(path)?;
    fchown(&file, Some(uid), Some(process::GROUP))?;
    Ok(file)
}

fn json(path: &Path, value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(|source| Error::Write { path: path.to_owned(), source: source.into() })
}

fn monitor_config(index: usize, spec: &Guest, image: &Image, folder: &Path, volumes: &[volumes::Ready]) -> Config {
    Config {
        name: spec.name.clone(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        kernel: layers::path(&image.kernel.digest),
        initrd: vec![layers::path(&image.initrd.digest), folder.join(CPIO)],
        cmdline: image.cmdline.clone(),
        console: Console::File { path: folder.join(CONSOLE), limit_kib: CONSOLE_LIMIT_KIB },
        pmem: image
            .layers
            .iter()
            .map(|layer| Pmem { path: layers::path(&layer.digest), label: layer.digest.to_string() })
            .collect(),
        disks: volumes
            .iter()
            .map(|volume| Disk { path: volume.path.clone(), serial: volume.name.clone(), readonly: false })
            .collect(),
        nets: spec
            .interfaces
            .iter()
            .map(|interface| Net { tap: network::names::tap(&interface.mac), mac: interface.mac.clone() })
            .collect(),
        vsock: Some(Vsock { cid: cid(index) }),
        exit_file: Some(folder.join(EXIT)),
    }
}

fn guest_config(manifest: &Manifest, spec: &Guest, image: &Image) -> GuestConfig {
    let default = spec.way_out(&manifest.networks);
    let interfaces = spec.interfaces.iter().enumerate().map(|(index, interface)| guest::Interface {
        mac: interface.mac.clone(),
        address: match interface.address {
            Address::Dhcp => guest::Address::Dhcp { default_route: default == Some(index) },
            Address::Static { address, prefix } => {
                let gateway = network::routes::gateway(manifest, &interface.network);
                guest::Address::Static { address, prefix, gateway: gateway.filter(|_| default == Some(index)) }
            }
        },
    });
    let interfaces = interfaces.collect();
    let nameservers = network::routes::resolvers(manifest, spec);
    let own = spec.interfaces.iter().find_map(|interface| interface.address.known()).unwrap_or(Ipv4Addr::LOCALHOST);
    GuestConfig {
        hostname: spec.name.clone(),
        domain: manifest.domain.clone(),
        layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        volumes: spec
            .volumes
            .iter()
            .map(|volume| guest::Volume { name: volume.name.clone(), mount: volume.mount.clone() })
            .collect(),
        secrets: image
            .secrets
            .iter()
            .map(|secret| guest::Secret {
                name: secret.name.clone(),
                path: secret.path.clone(),
                uid: secret.uid,
                gid: secret.gid,
                mode: secret.mode,
            })
            .collect(),
        interfaces,
        nameservers,
        init: image.init.clone(),
        process: image.process.clone().map(|process| guest::Process {
            env: process.env,
            workdir: process.workdir,
            uid: process.uid,
            gid: process.gid,
            groups: process.groups,
            stop_signal: process.stop_signal,
        }),
        health: spec.health.as_ref().map(|health| match health {
            Health::Dns(name) => guest::Health::Dns { name: name.clone(), address: own, port: 53 },
            Health::Http { port, path } => guest::Health::Http { address: own, port: *port, path: path.clone() },
            Health::Tcp(port) => guest::Health::Tcp { address: own, port: *port },
        }),
    }
}

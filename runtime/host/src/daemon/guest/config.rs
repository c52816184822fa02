//! What a guest's monitor and the guest itself are told: the monitor's configuration file, and the cpio with the
//! guest's own behind its initrd. A guest whose image is a whole disk is told nothing: what it boots is none of ours.

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
    manifest::{Address, Guest, Health, Image, Interface, Manifest, Network},
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
    if image.disk.is_none() {
        write_archive(manifest, index, spec, image, &folder.join(CPIO), secrets)?;
    }
    let path = folder.join(CONFIG);
    let text = json(&path, &monitor_config(index, spec, image, folder, volumes))?;
    fs::write(&path, text).map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

fn write_archive(
    manifest: &Manifest,
    index: usize,
    spec: &Guest,
    image: &Image,
    archive: &Path,
    secrets: &BTreeMap<String, Value>,
) -> Result<(), Error> {
    let file =
        own_file(archive, process::uid(index)).map_err(|source| Error::Write { path: archive.to_owned(), source })?;
    let mut writer = cpio::Writer::new(file, 0);
    let text = json(archive, &guest_config(manifest, spec, image))?;
    writer.bytes(guest::PATH.trim_start_matches('/'), 0o600, &text)?;
    for (name, value) in secrets {
        writer.bytes(&format!("{}/{name}", guest::SECRETS.trim_start_matches('/')), 0o400, value.bytes())?;
    }
    writer.finish()?;
    Ok(())
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
    let has_agent = image.disk.is_none();
    let archive = has_agent.then(|| folder.join(CPIO));
    Config {
        name: spec.name.clone(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        kernel: layers::path(&image.kernel.digest),
        initrd: [layers::path(&image.initrd.digest)].into_iter().chain(archive).collect(),
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
        vsock: has_agent.then(|| Vsock { cid: cid(index) }),
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
        health: health_at(spec, own),
    }
}

/// The guest's health check, as it is made against this address of it.
fn health_at(spec: &Guest, address: Ipv4Addr) -> Option<guest::Health> {
    spec.health.as_ref().map(|health| match health {
        Health::Dns(name) => guest::Health::Dns { name: name.clone(), address, port: 53 },
        Health::Http { port, path } => guest::Health::Http { address, port: *port, path: path.clone() },
        Health::Tcp(port) => guest::Health::Tcp { address, port: *port },
    })
}

/// The health check of a guest without an agent, as the rack makes it: against an address that the recipe names, or
/// none. The rack reaches its private networks always, and a LAN only where it has an address itself: those come first.
pub fn check_from_outside(manifest: &Manifest, spec: &Guest) -> Option<guest::Health> {
    let private = |at: &&Interface| matches!(manifest.networks.get(&at.network), Some(Network::Private { .. }));
    let known = |at: &Interface| at.address.known();
    let address = spec.interfaces.iter().filter(private).find_map(known);
    health_at(spec, address.or_else(|| spec.interfaces.iter().find_map(known))?)
}

#[cfg(test)]
mod tests {
    use rackstick_image::{
        digest::VerityDigest,
        manifest::{Blob, Disk},
    };

    use super::*;
    use crate::daemon::network::firewall::tests as sample;

    fn on(network: &str, address: Address) -> Interface {
        Interface { network: network.into(), mac: "52:54:00:00:00:01".into(), address }
    }

    #[test]
    fn a_guest_without_an_agent_is_asked_on_a_private_network_before_a_lan_and_not_where_only_dhcp_knows_it() {
        let manifest = sample::manifest();
        let mut spec = manifest.guests[0].clone();
        spec.health = Some(Health::Tcp(22));
        let fixed = |last| Address::Static { address: Ipv4Addr::new(10, 20, 0, last), prefix: 24 };
        let check = |address| Some(guest::Health::Tcp { address, port: 22 });
        spec.interfaces = vec![on("lan", fixed(9)), on("servers", fixed(80))];
        assert_eq!(check_from_outside(&manifest, &spec), check(Ipv4Addr::new(10, 20, 0, 80)));
        spec.interfaces = vec![on("lan", fixed(9))];
        assert_eq!(check_from_outside(&manifest, &spec), check(Ipv4Addr::new(10, 20, 0, 9)));
        spec.interfaces = vec![on("lan", Address::Dhcp)];
        assert_eq!(check_from_outside(&manifest, &spec), None);
        spec.health = None;
        spec.interfaces = vec![on("lan", fixed(9))];
        assert_eq!(check_from_outside(&manifest, &spec), None);
    }

    #[test]
    fn a_guest_that_is_a_whole_disk_boots_what_it_brings_and_nothing_of_ours() {
        let blob = |number| Blob { digest: VerityDigest([number; 32]), size: 4096, label: String::new() };
        let mut image = Image {
            layers: Vec::new(),
            kernel: blob(1),
            initrd: blob(2),
            cmdline: "root=/dev/vda1".into(),
            init: Vec::new(),
            process: None,
            secrets: Vec::new(),
            disk: Some(Disk { blob: blob(3), size: 8192 }),
        };
        let spec = sample::manifest().guests.remove(0);
        let ready = volumes::Ready { name: "disk".into(), path: "/data/disk.raw".into(), differs: None };
        let config = |image: &Image| monitor_config(0, &spec, image, Path::new("/run/x"), std::slice::from_ref(&ready));
        let foreign = config(&image);
        assert_eq!(foreign.initrd, [layers::path(&blob(2).digest)]);
        assert_eq!((foreign.vsock, foreign.pmem.len(), foreign.disks.len()), (None, 0, 1));
        assert_eq!((&*foreign.disks[0].serial, foreign.disks[0].readonly), ("disk", false));
        image.disk = None;
        let own = config(&image);
        assert_eq!((own.initrd.len(), own.vsock), (2, Some(Vsock { cid: FIRST_CID })));
    }
}

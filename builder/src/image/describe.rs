//! What is in an image, as text for people.

use std::fmt::{self, Write};

use rackstick_image::{
    manifest::{Address, Guest, Health, Image, Manifest, Network, Nic, Protocol, Secret, UplinkAddress},
    secrets::{self, SLOT_SIZE},
    view::ReadError,
};

use super::{
    open::{self, Fault, ImageError, Opened},
    packages::{self, Packages},
    text::{count, printable, size},
};

/// Why there is no description.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The text.
    #[error(transparent)]
    Text(#[from] fmt::Error),
}

/// What nothing in an image tells.
const UNTOLD: &str = "  The packages that the host's kernel, firmware and boot loader came from are in no file of the image;\n  \
                      the set `host` of the lock that it was built with names them.\n";
/// As long as there are no signatures.
pub const UNSIGNED: &str = "none yet: nothing in the image proves who built it";

/// The whole description.
pub fn describe(opened: &Opened<'_>) -> Result<String, DescribeError> {
    let manifest = &opened.host.manifest;
    let mut out = String::new();
    let (rack, version, domain) =
        (printable(&manifest.rack), printable(&manifest.version), printable(&manifest.domain));
    writeln!(out, "{}: rack {rack} {version}, domain {domain}", opened.disk.path.display())?;
    disk(&mut out, opened)?;
    host(&mut out, opened)?;
    writeln!(out, "\nnetworks")?;
    for (name, network) in &manifest.networks {
        writeln!(out, "  {}: {}", printable(name), printable(&of_network(network)))?;
    }
    writeln!(out, "\nguests, in the order in which they start")?;
    for guest in &manifest.guests {
        writeln!(out, "  {}", printable(&format!("{}: {}", guest.name, of_guest(manifest, guest).join(", "))))?;
    }
    secrets(&mut out, opened)?;
    layers(&mut out, opened)?;
    all_packages(&mut out, opened)?;
    writeln!(out, "\nsignatures: {UNSIGNED}")?;
    Ok(out)
}

fn disk(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let disk = opened.disk;
    let (whole, here) = (size(disk.view()?.length()), size(disk.allocated));
    writeln!(out, "\ndisk: {whole}, of which {here} are not holes, for {}-byte sectors", disk.sector)?;
    for found in &opened.parts.table {
        let (number, guid) = (found.number, found.guid);
        writeln!(
            out,
            "  {number} {:<5} {:>9} at {}, {guid}",
            printable(&found.name),
            size(found.size),
            size(found.start)
        )?;
    }
    Ok(())
}

fn host(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let host = &opened.host;
    let (modules, firmware) = host.drivers();
    writeln!(out, "\nhost: {}, {}", printable(&host.path), size(host.file.length()))?;
    writeln!(
        out,
        "  Linux {} with {} and {} of firmware",
        printable(&host.release),
        count(modules, "module"),
        count(firmware, "file")
    )?;
    writeln!(out, "  command line: {}", printable(&host.cmdline))?;
    let sections = host.sections.iter();
    let sections = sections
        .map(|section| format!("{} {}", printable(&section.name), size(section.content.end - section.content.start)));
    writeln!(out, "  sections: {}", sections.collect::<Vec<_>>().join(", "))?;
    out.push_str(UNTOLD);
    Ok(())
}

/// A network.
pub fn of_network(network: &Network) -> String {
    match network {
        Network::Uplink { nic, address, gateway, resolver } => {
            let nic = match nic {
                Nic::Auto => "auto",
                Nic::Mac(nic) | Nic::Name(nic) => nic,
            };
            let mut parts = vec![format!("uplink {nic}")];
            parts.push(match address {
                UplinkAddress::Dhcp => "address by DHCP".to_owned(),
                UplinkAddress::Static { address, prefix } => format!("address {address}/{prefix}"),
            });
            parts.extend(gateway.map(|gateway| format!("router {gateway}")));
            parts.extend(resolver.map(|resolver| format!("resolver {resolver}")));
            parts.join(", ")
        }
        Network::Private { gateway, prefix, nat } => {
            let nat = nat.as_ref().map_or("no NAT".to_owned(), |nat| format!("NAT by {nat}"));
            format!("private, the rack is {gateway}/{prefix}, {nat}")
        }
    }
}

/// What is in the slot for secrets, if any guest wants some or it is not empty.
fn secrets(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let damaged = |error: &ReadError| opened.disk.damaged(Fault::read("ESP", &opened.parts.esp, error));
    let manifest = &opened.host.manifest;
    let Some(slot) = secrets::find(&opened.parts.esp).map_err(|error| damaged(&error))? else { return Ok(()) };
    let slot = slot.bytes(SLOT_SIZE).map_err(|error| damaged(&error))?;
    let holds = match secrets::read(&slot) {
        Ok(values) if values.is_empty() && manifest.images.values().all(|image| image.secrets.is_empty()) => {
            return Ok(());
        }
        Ok(values) if values.is_empty() => {
            "no value is in the image; give them with `flash --secrets` or `run --secrets`".to_owned()
        }
        Ok(values) => {
            let names: Vec<String> = values.keys().map(|(guest, name)| format!("{guest}/{name}")).collect();
            format!("the image holds values that no rack has taken yet, so pass it on to nobody: {}", names.join(", "))
        }
        Err(error) => format!("their slot is damaged ({error}), and the rack will empty it"),
    };
    writeln!(out, "\nsecrets\n  {}", printable(&holds))?;
    Ok(())
}

/// All that the manifest says of a guest but its name, part by part.
pub fn of_guest(manifest: &Manifest, guest: &Guest) -> Vec<String> {
    let mut parts = vec![format!("image {}", guest.image), count(usize::from(guest.vcpus), "vCPU")];
    parts.push(format!("{} MiB", guest.memory_mib));
    parts.extend(guest.interfaces.iter().map(|interface| {
        let address = match interface.address {
            Address::Dhcp => "DHCP".to_owned(),
            Address::Static { address, prefix } => format!("{address}/{prefix}"),
        };
        format!("{address} on {} (MAC {})", interface.network, interface.mac)
    }));
    parts.extend(guest.forwards.iter().map(|forward| {
        let protocol = match forward.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        format!("{}:{}/{protocol} leads to its {}", forward.network, forward.port, forward.guest_port)
    }));
    parts.extend(
        guest
            .volumes
            .iter()
            .map(|volume| format!("volume {} of {} MiB at {}", volume.name, volume.size_mib, volume.mount)),
    );
    if let Some(disk) = manifest.images.get(&guest.image).and_then(|image| image.disk.as_ref()) {
        let bytes = guest.disk_mib.map_or(disk.size, |mib| u64::from(mib) << 20);
        parts.push(format!("a disk of its own of {} from {}", size(bytes), disk.blob.label));
    }
    parts.extend(manifest.secrets(guest).iter().map(|secret| {
        let Secret { name, path, uid, gid, mode } = secret;
        format!("secret {name} at {path} ({uid}:{gid}, mode {mode:04o})")
    }));
    parts.extend(guest.health.as_ref().map(|health| match health {
        Health::Dns(name) => format!("healthy if it answers {name}"),
        Health::Http { port, path } => format!("healthy if http://:{port}{path} answers"),
        Health::Tcp(port) => format!("healthy if port {port} answers"),
    }));
    if !guest.after.is_empty() {
        parts.push(format!("after {}", guest.after.join(", ")));
    }
    parts
}

fn layers(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let blobs = open::blobs(&opened.host.manifest);
    let all: u64 = blobs.iter().map(|used| used.blob.size).fold(0, u64::saturating_add);
    writeln!(out, "\nlayers, and what boots guests: {}", size(all))?;
    for used in &blobs {
        let guests: Vec<&str> = used.guests.iter().copied().collect();
        let guests = if guests.is_empty() { "no guest".to_owned() } else { guests.join(", ") };
        let (digest, blob) = (used.blob.digest, used.blob);
        let layer = if used.layer { Some(opened.layer(digest)?) } else { None };
        let files = match layer.filter(|layer| layer.compressed) {
            Some(layer) => {
                let files = layer.file_bytes().map_err(|error| opened.in_layer(blob, &error))?;
                format!(" (files of {})", size(files))
            }
            None => String::new(),
        };
        let what = format!("{}{files}: {guests}", blob.label);
        writeln!(out, "  {digest} {:>9} {}", size(blob.size), printable(&what))?;
    }
    Ok(())
}

/// The packages that all images have are told once.
fn all_packages(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let mut found: Vec<(&str, Packages)> = Vec::new();
    for (name, image) in &opened.host.manifest.images {
        let kernels = kernels(image);
        let packages = packages::of(opened, image)?;
        let count = packages.as_ref().map_or("no database of dpkg".to_owned(), |all| count(all.len(), "package"));
        let image = match &image.disk {
            Some(disk) => format!("a whole disk of {}, {}", size(disk.size), disk.blob.label),
            None if kernels.is_empty() => count,
            None => format!("Linux {}, {count}", kernels.join(", ")),
        };
        writeln!(out, "\nimage {}: {}", printable(name), printable(&image))?;
        found.extend(packages.map(|packages| (name.as_str(), packages)));
    }
    let in_all = |name: &String, version: &String| found.iter().all(|(_, all)| all.get(name) == Some(version));
    if let [(_, first), _, ..] = &found[..] {
        let common: Packages = first
            .iter()
            .filter(|(name, version)| in_all(name, version))
            .map(|(name, version)| (name.clone(), version.clone()))
            .collect();
        list(out, "packages of every image", &common)?;
        for (image, all) in &found {
            let own = all.iter().filter(|(name, _)| !common.contains_key(*name));
            let own: Packages = own.map(|(name, version)| (name.clone(), version.clone())).collect();
            list(out, &format!("packages that {image} has besides"), &own)?;
        }
    } else if let [(image, all)] = &found[..] {
        list(out, &format!("packages of {image}"), all)?;
    }
    Ok(())
}

/// The guest kernels for which an image has modules.
fn kernels(image: &Image) -> Vec<&str> {
    image.layers.iter().filter_map(|blob| blob.label.strip_prefix("kernel ")).collect()
}

fn list(out: &mut String, title: &str, packages: &Packages) -> fmt::Result {
    writeln!(out, "\n{} ({})", printable(title), packages.len())?;
    packages.iter().try_for_each(|(name, version)| writeln!(out, "  {}", printable(&format!("{name} {version}"))))
}

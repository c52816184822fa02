//! What is in an image, as text for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
};

use rackstick_image::manifest::{
    Address, Guest, Health, Image, Manifest, Network, Nic, Protocol, Secret, UplinkAddress,
};

use super::{
    open::{self, ImageError, Opened},
    packages::{self, Packages},
    secrets::{Held, names},
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
/// What the base of the recipe's rack is called, whose name no image holds.
const OWN_BASE: &str = "the rack's own base";
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

/// The secrets in the image, and those that are missing, if it has any or a guest wants some.
fn secrets(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let Held { given, kept, faults } = Held::of(&opened.parts, Some(&opened.fs));
    let manifest = &opened.host.manifest;
    let of = |guest: &Guest| {
        let names = manifest.secrets(guest).iter().map(|secret| (guest.name.clone(), secret.name.clone()));
        names.collect::<Vec<_>>()
    };
    let wanted: BTreeSet<(String, String)> = manifest.guests.iter().flat_map(of).collect();
    let missing: Vec<_> =
        wanted.iter().filter(|secret| !given.contains_key(secret) && !kept.contains_key(secret)).collect();
    let holds_none = given.is_empty() && kept.is_empty() && faults.is_empty();
    let mut lines = Vec::new();
    let holds = "so pass it on to nobody";
    if !given.is_empty() {
        lines.push(format!("the image holds values that no rack has taken yet, {holds}: {}", names(given.keys())));
    }
    if !kept.is_empty() {
        lines.push(format!("the data partition holds values that a rack keeps, {holds}: {}", names(kept.keys())));
    }
    lines.extend(faults.iter().map(ToString::to_string));
    if !missing.is_empty() {
        lines.push(if holds_none {
            "no value is in the image; give them with `flash --secrets` or `run --secrets`".to_owned()
        } else {
            format!("missing, so their guests wait; give them with `rackstick secrets`: {}", names(missing))
        });
    }
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nsecrets")?;
    Ok(lines.iter().try_for_each(|line| writeln!(out, "  {}", printable(line)))?)
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
    let bases: BTreeSet<&str> = opened.host.manifest.images.values().filter_map(open::base).collect();
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
        let own = bases.len() > 1 && used.layer && open::base_of_label(&blob.label) == Some("");
        let own = if own { format!(" ({OWN_BASE})") } else { String::new() };
        let what = format!("{}{own}{files}: {guests}", blob.label);
        writeln!(out, "  {digest} {:>9} {}", size(blob.size), printable(&what))?;
    }
    Ok(())
}

/// The packages of each image; those that all images of a base have are told once.
fn all_packages(out: &mut String, opened: &Opened<'_>) -> Result<(), DescribeError> {
    let (mut by_base, mut without_base) = (BTreeMap::<&str, Vec<(&str, Packages)>>::new(), Vec::new());
    for (name, image) in &opened.host.manifest.images {
        let mut parts: Vec<String> =
            open::base(image).filter(|base| !base.is_empty()).map(str::to_owned).into_iter().collect();
        let packages = packages::of(opened, image)?;
        let count = packages.as_ref().map_or("no database of dpkg".to_owned(), |all| count(all.len(), "package"));
        let kernels = kernels(image);
        parts.extend(match &image.disk {
            Some(disk) => vec![format!("a whole disk of {}", size(disk.size)), disk.blob.label.clone()],
            None if kernels.is_empty() => vec![count],
            None => vec![format!("Linux {}", kernels.join(", ")), count],
        });
        writeln!(out, "\nimage {}: {}", printable(name), printable(&parts.join(", ")))?;
        let of_base = open::base(image).map_or(&mut without_base, |base| by_base.entry(base).or_default());
        of_base.extend(packages.map(|packages| (name.as_str(), packages)));
    }
    let only = by_base.len() == 1 && without_base.is_empty();
    for (base, images) in by_base {
        let every = match base {
            _ if only => "packages of every image".to_owned(),
            "" => format!("packages of every image on {OWN_BASE}"),
            base => format!("packages of every image on {base}"),
        };
        packages_of(out, &every, &images)?;
    }
    without_base.iter().try_for_each(|image| Ok(packages_of(out, "", std::slice::from_ref(image))?))
}

/// The packages of some images: under `every` those that all have, then what each has besides.
fn packages_of(out: &mut String, every: &str, images: &[(&str, Packages)]) -> fmt::Result {
    let [(first, packages), others @ ..] = images else { return Ok(()) };
    if others.is_empty() {
        return list(out, &format!("packages of {first}"), packages);
    }
    let in_all = |name: &String, version: &String| others.iter().all(|(_, all)| all.get(name) == Some(version));
    let mut common = packages.clone();
    common.retain(|name, version| in_all(name, version));
    list(out, every, &common)?;
    images.iter().try_for_each(|(image, all)| {
        let mut own = all.clone();
        own.retain(|name, _| !common.contains_key(name));
        list(out, &format!("packages that {image} has besides"), &own)
    })
}

/// The guest kernels for which an image has modules.
fn kernels(image: &Image) -> Vec<&str> {
    image.layers.iter().filter_map(|blob| blob.label.strip_prefix("kernel ")).collect()
}

/// A list of packages with its title, unless it is empty.
fn list(out: &mut String, title: &str, packages: &Packages) -> fmt::Result {
    if packages.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{} ({})", printable(title), packages.len())?;
    packages.iter().try_for_each(|(name, version)| writeln!(out, "  {}", printable(&format!("{name} {version}"))))
}

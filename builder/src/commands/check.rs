//! `rackstick check RECIPE`: says whether a recipe is right, and whether its lock still fits it. Touches no network.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use rackstick_image::{
    manifest::Nic,
    recipe::{self, Rack},
};
use serde::Serialize;

use crate::{lock, output, report};

/// What its help ends with.
const EXAMPLES: &str = concat!(
    "Examples:\n",
    "  rackstick check recipes/lab.toml\n",
    "  rackstick check recipes/lab.toml --json | jq .result.guests\n",
);

/// Check a rack recipe, the image recipes it names, and whether its lock still fits
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The rack recipe
    recipe: PathBuf,
}

/// What is said of a recipe that is right.
#[derive(Serialize)]
struct Checked<'a> {
    recipe: &'a Path,
    rack: &'a str,
    version: &'a str,
    guests: Vec<Guest<'a>>,
    networks: Vec<Network<'a>>,
    /// Where packages come from beside the base.
    repositories: Vec<Repository<'a>>,
    /// None yet, or one that fits.
    lock: Option<Fitting>,
}

#[derive(Serialize)]
struct Guest<'a> {
    name: &'a str,
    /// What its image's packages are of; none if it is not made of packages.
    base: Option<&'a str>,
    vcpus: u8,
    memory_mib: u32,
    addresses: Vec<Address<'a>>,
    /// What it must be given at deploy time.
    secrets: Vec<&'a str>,
}

/// A guest's address on a network.
#[derive(Serialize)]
struct Address<'a> {
    network: &'a str,
    /// None if the network's DHCP server gives it.
    address: Option<String>,
    /// By which the DHCP server of a LAN knows the guest.
    mac: Option<String>,
}

#[derive(Serialize)]
struct Network<'a> {
    name: &'a str,
    /// The NIC of a network with one.
    uplink: Option<&'a str>,
    /// The subnet of a private network.
    subnet: Option<String>,
}

#[derive(Serialize)]
struct Repository<'a> {
    name: &'a str,
    /// The base that it stands beside.
    base: &'a str,
    suite: &'a str,
    /// The root of somebody else's archive; none of Debian's own.
    url: Option<&'a str>,
}

#[derive(Serialize)]
struct Fitting {
    path: PathBuf,
    packages: usize,
}

/// Checks the recipe, then the lock.
pub fn run(args: &Args) -> Result<(), report::Error> {
    let rack = recipe::load(&args.recipe)?;
    report::warn(&rack.warnings);
    let lock = lock::fitting(&args.recipe, &rack)?;
    let lock = lock.map(|lock| Fitting { path: lock::path(&args.recipe), packages: lock.packages().count() });
    let (name, version) = (&rack.name, &rack.version);
    let (guests, networks, repositories) = (guests(&rack), networks(&rack), repositories(&rack));
    output::result(&Checked { recipe: &args.recipe, rack: name, version, guests, networks, repositories, lock })?;
    Ok(())
}

fn guests(rack: &Rack) -> Vec<Guest<'_>> {
    let guests = rack.guests.iter().map(|(name, guest)| {
        let addresses = guest.addresses.iter().map(|(network, at)| {
            let on_a_lan = matches!(rack.networks.get(network), Some(recipe::Network::Uplink { .. }));
            let mac = on_a_lan.then(|| recipe::mac(&rack.name, name, network));
            Address { network, address: at.known().map(|address| address.to_string()), mac }
        });
        let image = rack.images.get(&guest.image);
        let base = image.filter(|image| image.from.is_none()).map(|image| rack.base_of(image).value.as_str());
        let secrets = image.into_iter().flat_map(|image| image.secrets.keys());
        Guest {
            name,
            base,
            vcpus: guest.vcpus,
            memory_mib: guest.memory_mib,
            addresses: addresses.collect(),
            secrets: secrets.map(String::as_str).collect(),
        }
    });
    guests.collect()
}

fn networks(rack: &Rack) -> Vec<Network<'_>> {
    let networks = rack.networks.iter().map(|(name, network)| match network {
        recipe::Network::Uplink { nic: Nic::Auto, .. } => Network { name, uplink: Some("auto"), subnet: None },
        recipe::Network::Uplink { nic: Nic::Mac(nic) | Nic::Name(nic), .. } => {
            Network { name, uplink: Some(nic), subnet: None }
        }
        recipe::Network::Private { subnet, .. } => Network { name, uplink: None, subnet: Some(subnet.to_string()) },
    });
    networks.collect()
}

fn repositories(rack: &Rack) -> Vec<Repository<'_>> {
    let repositories = rack.repositories.iter().map(|(name, repository)| Repository {
        name,
        base: &repository.base,
        suite: &repository.suite.value,
        url: repository.foreign.as_ref().map(|foreign| &*foreign.url),
    });
    repositories.collect()
}

impl fmt::Display for Checked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recipe = self.recipe.display();
        writeln!(f, "{recipe}: rack {} {} is fine", self.rack, self.version)?;
        writeln!(f, "  guests:   {}", listed(&self.guests))?;
        writeln!(f, "  networks: {}", listed(&self.networks))?;
        if !self.repositories.is_empty() {
            writeln!(f, "  packages: of {} too", listed(&self.repositories))?;
        }
        let secrets =
            self.guests.iter().flat_map(|guest| guest.secrets.iter().map(|name| format!("{}/{name}", guest.name)));
        let secrets: Vec<String> = secrets.collect();
        if !secrets.is_empty() {
            writeln!(f, "  secrets:  {}; give them to `flash` or `run` with --secrets", listed(&secrets))?;
        }
        match &self.lock {
            Some(Fitting { path, packages }) => {
                write!(f, "  lock:     {} fits, {packages} packages", path.display())
            }
            None => write!(f, "  lock:     none yet; `rackstick lock {recipe}` writes it"),
        }
    }
}

impl fmt::Display for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (", self.name)?;
        self.addresses.iter().try_for_each(|address| write!(f, "{address}, "))?;
        write!(f, "{} MiB)", self.memory_mib)
    }
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => f.write_str(address)?,
            None => write!(f, "DHCP on {}", self.network)?,
        }
        self.mac.iter().try_for_each(|mac| write!(f, ", MAC {mac}"))
    }
}

impl fmt::Display for Network<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, uplink, subnet } = self;
        match (uplink, subnet) {
            (Some(nic), _) => write!(f, "{name} (uplink {nic})"),
            (None, Some(subnet)) => write!(f, "{name} ({subnet})"),
            (None, None) => f.write_str(name),
        }
    }
}

impl fmt::Display for Repository<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, suite, url, .. } = self;
        match url {
            Some(url) => write!(f, "{name} ({suite} of {url})"),
            None => write!(f, "{name} ({suite})"),
        }
    }
}

fn listed(items: &[impl fmt::Display]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

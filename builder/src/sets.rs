//! Which packages a rack asks for: the roots that its lock is resolved from, by set.

use std::collections::BTreeMap;

use rackstick_image::{lock::Lock, recipe::Rack};

/// The set of the host's packages.
pub const HOST: &str = "host";
/// The set of the guests' kernel.
pub const KERNEL: &str = "kernel";
/// The set of the layer that all images share.
pub const BASE: &str = "base";

/// How the names of kernels and of their metapackages begin.
pub const KERNELS: &str = "linux-image-";

/// What every rack needs beside what its recipe names. One line a package, its set first. The set of the base is the
/// same for each base.
const FIXED: &[(&str, &str)] = &[
    // The host: a kernel with the drivers of real hardware, and the boot loader.
    (HOST, "linux-image-amd64"),
    (HOST, "systemd-boot-efi"),
    // What the drivers of `hardware::classes` load into their devices, and what processors load into themselves.
    (HOST, "amd64-microcode"),
    (HOST, "firmware-bnx2"),
    (HOST, "firmware-bnx2x"),
    (HOST, "firmware-intel-misc"),
    (HOST, "firmware-linux-free"),
    (HOST, "firmware-misc-nonfree"),
    (HOST, "firmware-myricom"),
    (HOST, "firmware-netxen"),
    (HOST, "firmware-qlogic"),
    (HOST, "firmware-realtek"),
    (HOST, "intel-microcode"),
    // The guests' kernel: virtio only, small.
    (KERNEL, "linux-image-cloud-amd64"),
    // What every image holds beside Debian's essential packages: an init, and what loads the kernel layer's modules.
    (BASE, "dbus"),
    (BASE, "kmod"),
    (BASE, "systemd"),
    (BASE, "systemd-sysv"),
    (BASE, "udev"),
];

/// What the set of one base needs beside these, which its essential packages would else be satisfied with another way.
/// One line a package, its base first.
const OF_BASES: &[(&str, &str)] = &[
    // Else `usrmerge`, with all of perl, to merge what the stage has merged already.
    ("debian:bookworm", "usr-is-merged"),
];

/// Whether host and kernel are made from the package: these come from the base alone, since drivers, firmware and
/// kernel are made to fit each other, and we to fit them.
pub fn is_of_the_host(package: &str) -> bool {
    package.starts_with(KERNELS) || FIXED.iter().any(|(set, name)| *name == package && [HOST, KERNEL].contains(set))
}

/// Name of the set of an image's own packages.
pub fn image(name: &str) -> String {
    format!("image:{name}")
}

/// The packages asked for, sorted, by set.
pub type Roots = BTreeMap<String, Vec<String>>;

/// What is asked for of each base, the rack's and those of images: of all the set `base` and one `image:<name>` for
/// each image made of its packages, of the rack's `host` and `kernel` too.
pub fn roots(rack: &Rack) -> BTreeMap<String, Roots> {
    let mut bases = BTreeMap::from([(rack.base.value.clone(), fixed(&rack.base.value, &[HOST, KERNEL, BASE]))]);
    for (name, recipe) in rack.images.iter().filter(|(_, recipe)| recipe.from.is_none()) {
        let base = &rack.base_of(recipe).value;
        let sets = bases.entry(base.clone()).or_insert_with(|| fixed(base, &[BASE]));
        let packages = sets.entry(image(name)).or_default();
        packages.extend(recipe.packages.iter().map(|package| package.value.clone()));
        packages.sort();
    }
    bases
}

/// What these sets of a base hold whatever a recipe says.
fn fixed(base: &str, sets: &[&str]) -> Roots {
    let mut roots = Roots::new();
    let of_base = OF_BASES.iter().filter(|(of, _)| *of == base).map(|(_, package)| (BASE, *package));
    for (set, package) in FIXED.iter().copied().chain(of_base).filter(|(set, _)| sets.contains(set)) {
        roots.entry(set.to_owned()).or_default().push(package.to_owned());
    }
    roots.values_mut().for_each(|packages| packages.sort());
    roots
}

/// How a lock's packages differ from what the recipe asks for, one line each; empty if it fits.
pub fn differences(rack: &Rack, lock: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    if rack.base.value != lock.base {
        lines.push(format!("the recipe's base is {}, the lock's {}", rack.base.value, lock.base));
    }
    let wanted = roots(rack);
    // Only other bases than the rack's have to be told apart.
    let named = |base: &String, set: &String| match base == &rack.base.value {
        true => format!("`{set}`"),
        false => format!("`{set}` of {base}"),
    };
    let locked = |base, set| lock.bases.get(base).and_then(|base| base.roots.get(set));
    for (base, set, packages) in each(&wanted) {
        let name = named(base, set);
        match locked(base, set) {
            None => lines.push(format!("the lock has no set {name}")),
            Some(locked) => {
                let added = packages.iter().filter(|package| !locked.contains(package));
                lines.extend(added.map(|package| format!("`{package}` was added to {name}")));
                let removed = locked.iter().filter(|package| !packages.contains(package));
                lines.extend(removed.map(|package| format!("`{package}` was removed from {name}")));
            }
        }
    }
    let gone = each(lock.bases.iter().map(|(base, of)| (base, &of.roots)))
        .filter(|(base, set, _)| !wanted.get(*base).is_some_and(|roots| roots.contains_key(*set)));
    lines.extend(gone.map(|(base, set, _)| format!("{} is no longer in the recipe", named(base, set))));
    lines
}

/// Each set, with its base.
fn each<'a>(
    bases: impl IntoIterator<Item = (&'a String, &'a Roots)>,
) -> impl Iterator<Item = (&'a String, &'a String, &'a Vec<String>)> {
    bases.into_iter().flat_map(|(base, roots)| roots.iter().map(move |(set, packages)| (base, set, packages)))
}

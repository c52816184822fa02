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

/// What every rack needs beside what its recipe names. One line a package, its set first.
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

/// Whether host and kernel are made from the package: these come from the base alone, since drivers, firmware and kernel are made
/// to fit each other, and we to fit them.
pub fn is_of_the_host(package: &str) -> bool {
    package.starts_with(KERNELS) || FIXED.iter().any(|(set, name)| *name == package && [HOST, KERNEL].contains(set))
}

/// Name of the set of an image's own packages.
pub fn image(name: &str) -> String {
    format!("image:{name}")
}

/// The packages asked for, sorted, by set: `host`, `kernel`, `base` and one `image:<name>` for each image made of packages.
pub fn roots(rack: &Rack) -> BTreeMap<String, Vec<String>> {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (set, package) in FIXED {
        sets.entry((*set).to_owned()).or_default().push((*package).to_owned());
    }
    sets.values_mut().for_each(|packages| packages.sort());
    for (name, recipe) in rack.images.iter().filter(|(_, recipe)| recipe.from.is_none()) {
        let packages = sets.entry(image(name)).or_default();
        packages.extend(recipe.packages.iter().map(|package| package.value.clone()));
        packages.sort();
    }
    sets
}

/// How a lock's packages differ from what the recipe asks for, one line each; empty if it fits.
pub fn differences(rack: &Rack, lock: &Lock) -> Vec<String> {
    let mut lines = Vec::new();
    if rack.base.value != lock.base {
        lines.push(format!("the recipe's base is {}, the lock's {}", rack.base.value, lock.base));
    }
    let wanted = roots(rack);
    for (set, packages) in &wanted {
        match lock.roots.get(set) {
            None => lines.push(format!("the lock has no set `{set}`")),
            Some(locked) => {
                let added = packages.iter().filter(|package| !locked.contains(package));
                lines.extend(added.map(|package| format!("`{package}` was added to `{set}`")));
                let removed = locked.iter().filter(|package| !packages.contains(package));
                lines.extend(removed.map(|package| format!("`{package}` was removed from `{set}`")));
            }
        }
    }
    let gone = lock.roots.keys().filter(|set| !wanted.contains_key(*set));
    lines.extend(gone.map(|set| format!("`{set}` is no longer in the recipe")));
    lines
}

//! The root: each layer is a pmem device with an EROFS, read straight from the host's page cache (DAX); an overlay
//! joins them under a tmpfs that takes what the guest writes (Linux,
//! Documentation/filesystems/{erofs,overlayfs,dax}.rst).

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use rackstick_linux::{
    mount::{self, MountFlags},
    uevent::Uevents,
};

use super::{InitError, file_error};

/// Where the layers are until the overlay holds them. Mounts that stayed would be more things for the image's init to
/// look after, and to take down one by one when the guest is stopped.
const LAYERS: &str = "/layers";
/// Where the overlay's upper directory is until the overlay holds it.
const UPPER: &str = "/upper";

/// What the overlay is told. The layers come from an overlay made without these features, and what is above them is
/// gone at the next start, so there is no older state that they could disagree with.
/// - `redirect_dir=on`: a directory of a layer can be renamed without copying it.
/// - `index=off`: no file handles are needed, which the layers would have to be unique for.
/// - `metacopy=off`: a changed mode copies the file; nothing is ever half in a layer.
/// - `xino=auto`: all files show the overlay's device number, so that `find -xdev` and `tar` see one file system.
const OVERLAY_OPTIONS: &str = "redirect_dir=on,index=off,metacopy=off,xino=auto";

/// Waits until there are `wanted` pmem devices, and gives their nodes, lowest layer first: by PCI address.
pub(super) fn wait(events: &Uevents, wanted: u32, deadline: Instant) -> Result<Vec<PathBuf>, InitError> {
    let mut failure = None;
    let what = format!("{wanted} pmem devices, one for each layer");
    let devices = events.wait_for(&what, deadline, || match find(Path::new("/sys/block")) {
        Ok(devices) => (devices.len() >= wanted as usize).then_some(devices),
        Err(error) => {
            failure = Some(error);
            Some(Vec::new())
        }
    })?;
    if let Some(error) = failure {
        return Err(InitError::Sysfs(error));
    }
    if devices.len() != wanted as usize {
        return Err(InitError::Layers { found: devices.len(), wanted });
    }
    Ok(devices)
}

/// The pmem devices with a node in `/dev`, in order of PCI address.
fn find(sys_block: &Path) -> io::Result<Vec<PathBuf>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(sys_block)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("pmem") {
            continue;
        }
        let node = Path::new("/dev").join(&name);
        let device = fs::canonicalize(entry.path())?;
        // A device without PCI address is none that our monitor made.
        if let Some(address) = device.iter().filter_map(pci_address).next_back()
            && node.exists()
        {
            devices.push((address, node));
        }
    }
    devices.sort();
    Ok(devices.into_iter().map(|(_, node)| node).collect())
}

/// Domain, bus, device and function of a directory such as `0000:00:03.0`.
fn pci_address(name: &OsStr) -> Option<(u32, u8, u8, u8)> {
    let (rest, function) = name.to_str()?.split_once('.')?;
    let mut parts = rest.split(':');
    let address = (
        u32::from_str_radix(parts.next()?, 16).ok()?,
        u8::from_str_radix(parts.next()?, 16).ok()?,
        u8::from_str_radix(parts.next()?, 16).ok()?,
        function.parse().ok()?,
    );
    parts.next().is_none().then_some(address)
}

/// Mounts the layers' overlay on `root`.
pub(super) fn mount_root(devices: &[PathBuf], root: &Path) -> Result<(), InitError> {
    let read_only = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    let mut lower = Vec::with_capacity(devices.len());
    for (number, device) in devices.iter().enumerate() {
        let target = format!("{LAYERS}/{number}");
        // The overlay takes its flags from its own mount, not from those of its layers.
        mount::mount("erofs", device, &target, read_only, "dax=always")?;
        report_dax(&target);
        // The overlay wants the highest first.
        lower.insert(0, target);
    }

    mount::mount("tmpfs", "upper", UPPER, MountFlags::empty(), "mode=0755")?;
    let (upper, work) = (format!("{UPPER}/root"), format!("{UPPER}/work"));
    for directory in [&upper, &work] {
        fs::create_dir(directory).map_err(file_error("create", directory))?;
    }
    // The upper directory's mode becomes that of `/`.
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).map_err(file_error("set the mode of", &upper))?;
    let options = format!("lowerdir={},upperdir={upper},workdir={work},{OVERLAY_OPTIONS}", lower.join(":"));
    mount::mount("overlay", "root", root, MountFlags::empty(), &options)?;
    for target in lower.iter().map(String::as_str).chain([UPPER]) {
        mount::unmount(target, true)?;
    }
    Ok(())
}

/// EROFS only logs it when DAX is not to be had and reads into the guest's own memory then: it works, at a price.
fn report_dax(target: &str) {
    match fs::read_to_string("/proc/self/mounts") {
        Ok(mounts) if has_dax(&mounts, target) => {
            log::info!("{target} is read from the host's memory (DAX), but for files that are compressed")
        }
        Ok(_) => {
            log::warn!(
                "{target} is mounted without DAX: this guest keeps its own copy of what it reads; dmesg says why"
            );
        }
        Err(error) => log::warn!("can't find out whether {target} is mounted with DAX: {error}"),
    }
}

fn has_dax(mounts: &str, target: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(target)
            && words.nth(1).is_some_and(|options| options.split(',').any(|word| word == "dax=always"))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn layers_are_ordered_by_pci_address_whatever_the_kernel_numbered_them() {
        let address = |text: &str| pci_address(OsStr::new(text));
        assert_eq!(address("0000:00:0a.1"), Some((0, 0, 10, 1)));
        assert!(address("0000:00:0a.0") > address("0000:00:09.0"));
        assert!(address("0001:00:00.0") > address("0000:ff:1f.7"));
        for other in ["virtio1", "namespace0.0", "pci0000:00", "pfn0.1", "0000:00:0a", "0000:00:0a:0b.1"] {
            assert_eq!(address(other), None, "{other}");
        }
    }

    #[test]
    fn only_pmem_devices_with_a_pci_address_and_a_node_are_layers() {
        let sys = tempfile::tempdir().unwrap();
        let block = sys.path().join("block");
        fs::create_dir(&block).unwrap();
        // /dev/null stands for a pmem node that exists; none of the others does.
        for (name, device) in
            [("pmem9999", "pci0000:00/0000:00:03.0/virtio1/ndbus0"), ("vda", "pci0000:00/0000:00:04.0")]
        {
            let target = sys.path().join("devices").join(device).join(name);
            fs::create_dir_all(&target).unwrap();
            symlink(&target, block.join(name)).unwrap();
        }
        assert!(find(&block).unwrap().is_empty());
    }

    #[test]
    fn dax_is_read_from_the_mount_s_own_line() {
        let mounts = "/dev/pmem0 /layers/0 erofs ro,nosuid,relatime,user_xattr,acl,dax=always 0 0\n\
                      /dev/pmem1 /layers/1 erofs ro,relatime,user_xattr,acl 0 0\n";
        assert!(has_dax(mounts, "/layers/0"));
        assert!(!has_dax(mounts, "/layers/1"));
        assert!(!has_dax(mounts, "/layers/10"));
    }
}

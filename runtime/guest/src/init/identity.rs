//! Who the guest is: host name, `hosts`, resolvers, written into its root before anything of the image runs.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rackstick_api::guest::GuestConfig;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, renameat, statat, unlinkat,
};

use super::{InitError, file_error};

/// The C library looks at three (MAXNS).
const MOST_RESOLVERS: usize = 3;
/// Name of a file while it is written.
const TEMPORARY: &str = ".rackstick-new";

/// Sets the host name and writes `/etc/{hostname,hosts,resolv.conf}` of `root`.
pub(super) fn write(root: &Path, config: &GuestConfig) -> Result<(), InitError> {
    rustix::system::sethostname(config.hostname.as_bytes()).map_err(|error| {
        InitError::BadConfig(format!("names the host `{}`, which the kernel refuses: {error}", config.hostname))
    })?;
    let etc = etc(root).map_err(file_error("open /etc in", root))?;
    replace(&etc, "hostname", &format!("{}\n", config.hostname)).map_err(file_error("write", "/etc/hostname"))?;
    replace(&etc, "hosts", &hosts(config)).map_err(file_error("write", "/etc/hosts"))?;
    // Without nameservers the image's own file counts: it may run a resolver itself.
    if !config.nameservers.is_empty() {
        replace(&etc, "resolv.conf", &resolv_conf(config, &[])).map_err(file_error("write", "/etc/resolv.conf"))?;
    }
    Ok(())
}

/// Writes `/etc/resolv.conf` of `root` with the resolvers that DHCP servers named behind those known before. One that
/// the image made a symlink belongs to a resolver of its own and stays.
pub(crate) fn write_resolvers(root: &Path, config: &GuestConfig, more: &[Ipv4Addr]) -> Result<(), InitError> {
    let etc = etc(root).map_err(file_error("open /etc in", root))?;
    let link = statat(&etc, "resolv.conf", AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink);
    if link || (config.nameservers.is_empty() && more.is_empty()) {
        return Ok(());
    }
    replace(&etc, "resolv.conf", &resolv_conf(config, more)).map_err(file_error("write", "/etc/resolv.conf"))
}

/// Opens `/etc` of `root` as a process inside would see it: a symlink in the image can't lead out.
fn etc(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty())?;
    match mkdirat(&root, "etc", Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(&root, "etc", flags, Mode::empty(), resolve)?)
}

/// Replaces `name` in `directory`. A symlink of that name is replaced itself, not what it points to.
fn replace(directory: impl AsFd, name: &str, text: &str) -> io::Result<()> {
    let directory = directory.as_fd();
    match unlinkat(directory, TEMPORARY, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, TEMPORARY, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(text.as_bytes())?;
    Ok(renameat(directory, TEMPORARY, directory, name)?)
}

fn full_name(config: &GuestConfig) -> String {
    if config.domain.is_empty() { config.hostname.clone() } else { format!("{}.{}", config.hostname, config.domain) }
}

fn hosts(config: &GuestConfig) -> String {
    let mut out = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    let full = full_name(config);
    let names = if full == config.hostname { full } else { format!("{full} {}", config.hostname) };
    let mut addresses = config.interfaces.iter().filter_map(|interface| interface.address.known()).peekable();
    if addresses.peek().is_none() {
        // As Debian's installer does where there is no fixed address.
        let _ = writeln!(out, "127.0.1.1 {names}");
    }
    for address in addresses {
        // Writing to a String can't fail.
        let _ = writeln!(out, "{address} {names}");
    }
    out
}

fn resolv_conf(config: &GuestConfig, more: &[Ipv4Addr]) -> String {
    let mut out = String::new();
    if !config.domain.is_empty() {
        let _ = writeln!(out, "search {}", config.domain);
    }
    for server in config.nameservers.iter().chain(more).take(MOST_RESOLVERS) {
        let _ = writeln!(out, "nameserver {server}");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use rackstick_api::guest::{Address, Interface};

    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            hostname: "web".into(),
            domain: "lab.internal".into(),
            layers: 3,
            volumes: Vec::new(),
            secrets: Vec::new(),
            interfaces: vec![Interface {
                mac: "52:54:00:12:34:56".into(),
                address: Address::Static {
                    address: [10, 20, 0, 80].into(),
                    prefix: 24,
                    gateway: Some([10, 20, 0, 1].into()),
                },
            }],
            nameservers: vec![[10, 20, 0, 53].into()],
            init: vec!["/sbin/init".into()],
            process: None,
            health: None,
        }
    }

    #[test]
    fn a_guest_knows_its_name_and_its_resolver() {
        let root = tempfile::tempdir().unwrap();
        let etc = etc(root.path()).unwrap();
        replace(&etc, "hosts", &hosts(&config())).unwrap();
        replace(&etc, "resolv.conf", &resolv_conf(&config(), &[])).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("etc").join(name)).unwrap();
        assert!(read("hosts").contains("\n10.20.0.80 web.lab.internal web\n"));
        assert_eq!(read("resolv.conf"), "search lab.internal\nnameserver 10.20.0.53\n");
        assert_eq!(fs::metadata(root.path().join("etc/hosts")).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn resolvers_of_a_lease_stand_behind_the_racks_and_a_resolver_of_the_image_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("etc/resolv.conf");
        let lease = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into(), [192, 0, 2, 3].into()];
        write_resolvers(root.path(), &config(), &lease).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "search lab.internal\nnameserver 10.20.0.53\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        fs::remove_file(&path).unwrap();
        symlink("/run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        write_resolvers(root.path(), &config(), &lease).unwrap();
        assert!(path.is_symlink());
    }

    #[test]
    fn a_symlink_in_the_image_leads_nowhere_outside_it() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "untouched").unwrap();

        // The file is a link: the link is replaced.
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(&victim, root.path().join("etc/resolv.conf")).unwrap();
        replace(etc(root.path()).unwrap(), "resolv.conf", "new").unwrap();
        assert!(!root.path().join("etc/resolv.conf").is_symlink());

        // The temporary file is a link.
        symlink(&victim, root.path().join("etc").join(TEMPORARY)).unwrap();
        replace(etc(root.path()).unwrap(), "hosts", "new").unwrap();

        // The directory is a link to outside: inside the root there is no such directory.
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("etc")).unwrap();
        assert!(etc(root.path()).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);

        // The directory is a link that stays inside.
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/etc")).unwrap();
        symlink("/usr/etc", root.path().join("etc")).unwrap();
        replace(etc(root.path()).unwrap(), "hosts", "new").unwrap();
        assert_eq!(fs::read_to_string(root.path().join("usr/etc/hosts")).unwrap(), "new");
    }
}

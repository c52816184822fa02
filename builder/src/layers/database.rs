//! dpkg's database under /var/lib/dpkg, in the state that `dpkg --unpack` leaves: what the image's own dpkg then needs
//! to configure the packages and to answer questions about them later. Follows dpkg(1), deb-triggers(5),
//! dpkg-trigger(1).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{deb::Control, paths::merged, tree::Tree, unpack::Listing};

/// The database.
pub const ADMIN: &str = "/var/lib/dpkg";
/// The control part of the one package that is being installed: its preinst runs from there, and scripts such as
/// debconf's look there for the package's name and templates.
pub const INSTALLING: &str = "/var/lib/dpkg/tmp.ci";
const STATUS: &str = "/var/lib/dpkg/status";
const INFO: &str = "/var/lib/dpkg/info";
const FILE_TRIGGERS: &str = "/var/lib/dpkg/triggers/File";
const PENDING_TRIGGERS: &str = "/var/lib/dpkg/triggers/Unincorp";

/// Creates an empty database where there is none.
pub fn create(tree: &Tree) -> io::Result<()> {
    if tree.is_file(Path::new(STATUS))? {
        return Ok(());
    }
    tree.write(Path::new(STATUS), b"", 0o644)?;
    tree.write(&Path::new(INFO).join("format"), b"1\n", 0o644)?;
    for folder in ["updates", "triggers", "parts", "alternatives"] {
        tree.create_dirs(&Path::new(ADMIN).join(folder), &mut |_| ())?;
    }
    Ok(())
}

/// Puts a package's control part where its preinst finds it.
pub fn start_install(tree: &Tree, control: &Control) -> io::Result<()> {
    let folder = Path::new(INSTALLING);
    tree.write(&folder.join("control"), control.paragraph.as_bytes(), 0o644)?;
    add_control(tree, control, &|member| folder.join(member))
}

/// After the preinst.
pub fn end_install(tree: &Tree) -> io::Result<()> {
    tree.remove_all(Path::new(INSTALLING))
}

/// Maintainer scripts and the rest of the control part, each at the path that `place` gives it.
fn add_control(tree: &Tree, control: &Control, place: &dyn Fn(&str) -> PathBuf) -> io::Result<()> {
    for (member, (mode, bytes)) in &control.members {
        let script = ["preinst", "postinst", "prerm", "postrm", "config"].contains(&member.as_str());
        let mode = if script { *mode | 0o111 } else { 0o644 };
        tree.write(&place(member), bytes, mode)?;
    }
    Ok(())
}

/// Notes `packages` as unpacked, with their scripts, files and triggers.
pub fn add_unpacked(tree: &Tree, packages: &[(&Control, &Listing)]) -> io::Result<()> {
    let mut status = Vec::new();
    for (control, listing) in packages {
        let list: Vec<u8> = listing.iter().flat_map(|path| path.iter().chain(b"\n")).copied().collect();
        let info = |member: &str| Path::new(INFO).join(format!("{}.{member}", control.database_name()));
        add_control(tree, control, &info)?;
        tree.write(&info("list"), &list, 0o644)?;
        status.extend_from_slice(paragraph(control).as_bytes());
    }
    tree.append(Path::new(STATUS), &status)?;
    add_interests(tree, packages.iter().map(|(control, _)| *control))?;
    activate_file_triggers(tree, packages)
}

/// A status paragraph: the control file's, plus state and conffiles.
fn paragraph(control: &Control) -> String {
    let mut out = String::new();
    for line in control.paragraph.lines() {
        out.push_str(line);
        out.push('\n');
        if line.starts_with("Package:") {
            out.push_str("Status: install ok unpacked\n");
        }
    }
    let conffiles = control.lines("conffiles");
    if !conffiles.is_empty() {
        out.push_str("Conffiles:\n");
        for conffile in conffiles {
            // A flag may stand before the path (`remove-on-upgrade`): dpkg notes it behind.
            match conffile.split_once(char::is_whitespace) {
                Some((flag, path)) => out.push_str(&format!(" {} newconffile {flag}\n", path.trim())),
                None => out.push_str(&format!(" {conffile} newconffile\n")),
            }
        }
    }
    out.push('\n');
    out
}

fn add_interests<'a>(tree: &Tree, controls: impl Iterator<Item = &'a Control>) -> io::Result<()> {
    let mut by_path = Vec::new();
    let mut by_name: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for control in controls {
        for line in control.lines("triggers") {
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else {
                continue;
            };
            let mut package = control.database_name();
            match directive {
                "interest" | "interest-await" => {}
                "interest-noawait" => package.push_str("/noawait"),
                _ => continue,
            }
            if trigger.starts_with('/') {
                by_path.extend_from_slice(format!("{trigger} {package}\n").as_bytes());
            } else if !trigger.contains('/') {
                by_name.entry(trigger.to_owned()).or_default().extend_from_slice(format!("{package}\n").as_bytes());
            }
        }
    }
    if !by_path.is_empty() {
        tree.append(Path::new(FILE_TRIGGERS), &by_path)?;
    }
    for (trigger, packages) in by_name {
        tree.append(&Path::new(ADMIN).join("triggers").join(trigger), &packages)?;
    }
    Ok(())
}

/// New files below a path that a package watches must set its trigger off, as unpacking by dpkg would.
fn activate_file_triggers(tree: &Tree, packages: &[(&Control, &Listing)]) -> io::Result<()> {
    let interests = tree.read(Path::new(FILE_TRIGGERS))?.unwrap_or_default();
    let watched: Vec<&[u8]> =
        interests.split(|byte| *byte == b'\n').filter_map(|line| line.split(|b| *b == b' ').next()).collect();
    let below = |path: &[u8], folder: &[u8]| {
        path.strip_prefix(folder).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
    };
    let active: BTreeSet<&[u8]> = watched
        .into_iter()
        .filter(|trigger| !trigger.is_empty())
        .filter(|trigger| packages.iter().any(|(_, listing)| listing.iter().any(|path| below(path, trigger))))
        .collect();
    let lines: Vec<u8> = active.iter().flat_map(|trigger| [trigger, b" -\n".as_slice()].concat()).collect();
    if lines.is_empty() { Ok(()) } else { tree.append(Path::new(PENDING_TRIGGERS), &lines) }
}

/// Which package owns each file, by path on the merged system.
pub fn owners(tree: &Tree) -> io::Result<HashMap<PathBuf, String>> {
    let mut owners = HashMap::new();
    for (name, _) in tree.entries(Path::new(INFO))? {
        let Some(package) = name.to_str().and_then(|name| name.strip_suffix(".list")) else {
            continue;
        };
        let package = package.split(':').next().unwrap_or(package).to_owned();
        let list = tree.read(&Path::new(INFO).join(&name))?.unwrap_or_default();
        for path in list.split(|byte| *byte == b'\n').filter(|path| path.len() > 1) {
            owners.insert(path_of(path), package.clone());
        }
    }
    Ok(owners)
}

/// Diverted paths: where to, and by which package.
pub fn diversions(tree: &Tree) -> io::Result<HashMap<PathBuf, (PathBuf, String)>> {
    let file = tree.read(&Path::new(ADMIN).join("diversions"))?.unwrap_or_default();
    let lines: Vec<&[u8]> = file.split(|byte| *byte == b'\n').collect();
    let diversion =
        |chunk: &[&[u8]]| (path_of(chunk[0]), (path_of(chunk[1]), String::from_utf8_lossy(chunk[2]).into_owned()));
    // A diversion of /lib/x by a package of the merged world keeps others off the alias; it must not catch /usr/lib/x.
    let aliased =
        |chunk: &&[&[u8]]| path_of(chunk[0]).as_os_str().as_bytes() != chunk[0].strip_prefix(b"/").unwrap_or(chunk[0]);
    Ok(lines.chunks_exact(3).filter(|chunk| !aliased(chunk)).map(diversion).collect())
}

/// `/lib/x` as a path of the tree: `usr/lib/x`.
fn path_of(listed: &[u8]) -> PathBuf {
    let path = PathBuf::from(std::ffi::OsString::from_vec(listed.to_vec()));
    merged(path.strip_prefix("/").unwrap_or(&path))
}

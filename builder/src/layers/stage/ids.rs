//! Maps the ids of a stage: 0 to 65535 inside, so that every owner that Debian knows exists. As root they are the
//! machine's own; as an ordinary user, 0 is the user and the rest comes from subuid(5), through newuidmap(1).

use std::{
    fs, io,
    path::Path,
    process::{Command, Output},
};

/// How many ids a stage needs.
const IDS: u32 = 65_536;
/// Who has what range of subordinate ids: of users and of groups. subuid(5), subgid(5)
const RANGES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// The first subordinate id that machines give away (login.defs(5), `SUB_UID_MIN`).
const FIRST_RANGE: u32 = 100_000;

/// Why ids can't be mapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Root itself may not.
    #[error(
        "the ids 0 to 65535 can't be mapped for a build, though this is root ({0}): this machine is itself a container \
         with fewer ids; give it a range of 65536, or build as an ordinary user with subordinate ids"
    )]
    Root(io::Error),
    /// The helper is missing.
    #[error("`{0}` is missing, it gives a build the ids it needs: install it (`apt install uidmap`)")]
    NoHelper(&'static str),
    /// The helper can't be started.
    #[error("`{0}` can't be started: {1}")]
    Helper(&'static str, io::Error),
    /// No range.
    #[error(
        "user {user} has no {needed} subordinate ids in {file}, which a build needs for the files of other users: \
         add them with `sudo usermod --add-subuids {free}-{last} --add-subgids {free}-{last} {user}`",
        last = free + (IDS - 1)
    )]
    NoRange {
        /// User name, or the number of a user without one.
        user: String,
        /// The file that was read.
        file: &'static str,
        /// How many.
        needed: u32,
        /// From this one on nobody has any.
        free: u32,
    },
    /// The helper refused.
    #[error("`{helper}` refused to map the ids of a build: {said}")]
    Refused {
        /// The helper.
        helper: &'static str,
        /// Its stderr.
        said: String,
    },
}

/// Whether there are ids that [`map`] can give, as far as that can be known before.
pub fn check() -> Result<(), Error> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(());
    }
    let user = user_name(uid.as_raw());
    RANGES.into_iter().try_for_each(|file| range(file, &user, uid.as_raw()).map(|_| ()))
}

/// Maps the ids of the process `pid`, which has just left its user namespace.
pub fn map(pid: u32) -> Result<(), Error> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), format!("0 0 {IDS}\n")).map_err(Error::Root)?;
        }
        return Ok(());
    }
    let user = user_name(uid.as_raw());
    let gid = rustix::process::getegid().as_raw();
    for (helper, file, own) in [("newuidmap", RANGES[0], uid.as_raw()), ("newgidmap", RANGES[1], gid)] {
        let first = range(file, &user, uid.as_raw())?;
        let arguments = [pid, 0, own, 1, 1, first, IDS - 1].map(|number| number.to_string());
        let Output { status, stderr, .. } = Command::new(helper).args(arguments).output().map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound { Error::NoHelper(helper) } else { Error::Helper(helper, error) }
        })?;
        if !status.success() {
            return Err(Error::Refused { helper, said: String::from_utf8_lossy(&stderr).trim().to_owned() });
        }
    }
    Ok(())
}

/// The first subordinate id of a range that is large enough. One id fewer than [`IDS`]: the user's own comes first.
fn range(file: &'static str, user: &str, uid: u32) -> Result<u32, Error> {
    let text = fs::read_to_string(Path::new(file)).unwrap_or_default();
    let number = uid.to_string();
    let mut own = text.lines().filter_map(parse).filter(|(owner, ..)| *owner == user || *owner == number);
    let fitting = own.find(|(_, start, count)| *count >= IDS - 1 && start.checked_add(IDS - 1).is_some());
    fitting.map(|(_, start, _)| start).ok_or_else(|| Error::NoRange {
        user: user.to_owned(),
        file,
        needed: IDS - 1,
        free: free(&RANGES.map(|file| fs::read_to_string(file).unwrap_or_default())),
    })
}

/// Owner, first id and number of ids.
fn parse(line: &str) -> Option<(&str, u32, u32)> {
    let mut parts = line.trim().split(':');
    Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// From which id on nobody has any, in files like these.
fn free(files: &[String]) -> u32 {
    let ends = files
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(parse)
        .map(|(_, start, count)| start.saturating_add(count));
    ends.max().unwrap_or(0).clamp(FIRST_RANGE, u32::MAX - IDS)
}

/// The user's name; `id` knows those of directory services too. Who has none is known by number.
fn user_name(uid: u32) -> String {
    let output = Command::new("id").arg("-un").output().ok().filter(|output| output.status.success());
    let name = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| uid.to_string())
}

/// Why the kernel refuses a user namespace, in words: what forbids it on this machine.
pub fn why_no_namespace(error: rustix::io::Errno) -> String {
    let knob = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let reason = if knob("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        "they are switched off (`sudo sysctl -w kernel.unprivileged_userns_clone=1` switches them on)"
    } else if knob("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        "none are allowed (`sudo sysctl -w user.max_user_namespaces=15000` allows them)"
    } else if knob("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        "AppArmor restricts them (`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` lifts that)"
    } else {
        "a container or a chroot around this build forbids them; run it outside, or allow the container to unshare"
    };
    // Where none are allowed this is said as of a full disk.
    let error = match error {
        rustix::io::Errno::NOSPC => "ENOSPC".to_owned(),
        other => other.to_string(),
    };
    format!("builds run in user namespaces, and this machine refuses them ({error}): {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_somebody_has_are_not_offered() {
        assert_eq!(free(&[String::new(), String::new()]), 100_000);
        let files = ["ada:100000:65536\nbob:300000:65536\n", "# nothing\nada:400000:5\n"].map(str::to_owned);
        assert_eq!(free(&files), 400_005);
    }
}

//! Users and groups of an image, from its own /etc/passwd and /etc/group. Follows passwd(5) and group(5), and for how a
//! user is named the OCI Image Format Specification, config, `User`.

use std::io::{self, Read};

use rackstick_image::erofs::Kind;

use super::tree::Files;

/// Bytes of such a file at most that are looked at.
const MAX_BYTES: u64 = 4 << 20;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Number.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Numbers of further groups.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: String,
}

/// Why a user can't be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("the image has no user `{0}` in its /etc/passwd")]
    NoUser(String),
    /// No such group.
    #[error("the image has no group `{0}` in its /etc/group")]
    NoGroup(String),
    /// A file of the image can't be read.
    #[error("the image's {path} can't be read: {source}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The user that `text` names: name or number, and after a colon a group. Nothing means root.
pub fn find(files: &Files, text: &str) -> Result<User, UserError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let (passwd, groups) = (read(files, "/etc/passwd")?, read(files, "/etc/group")?);
    // A name may consist of digits: it comes first.
    let by = |field: usize| passwd.iter().find(move |line| line.get(field).is_some_and(|word| word == user));
    let line = by(0).or_else(|| by(2));
    let (uid, own_group, home, name) = match line {
        Some(line) => (number(line.get(2)), number(line.get(3)), line.get(5).cloned(), line.first()),
        None => (number(Some(&user.to_owned())), Some(0), None, None),
    };
    let no_user = || UserError::NoUser(user.to_owned());
    let (uid, own_group) = (uid.ok_or_else(no_user)?, own_group.ok_or_else(no_user)?);
    let home = home.filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    if let Some(name) = group {
        return Ok(User { uid, gid: self::group(files, name)?, groups: Vec::new(), home });
    }
    let is_member = |line: &&Vec<String>| {
        line.get(3).is_some_and(|members| members.split(',').any(|member| name.is_some_and(|name| member == name)))
    };
    let mut further: Vec<u32> = groups.iter().filter(is_member).filter_map(|line| number(line.get(2))).collect();
    further.sort_unstable();
    further.dedup();
    Ok(User { uid, gid: own_group, groups: further, home })
}

/// The number of the group that `text` names, by name or number.
pub fn group(files: &Files, text: &str) -> Result<u32, UserError> {
    let groups = read(files, "/etc/group")?;
    let line = groups.iter().find(|line| line.first().is_some_and(|name| name == text));
    let gid = line.map_or_else(|| number(Some(&text.to_owned())), |line| number(line.get(2)));
    gid.ok_or_else(|| UserError::NoGroup(text.to_owned()))
}

fn number(word: Option<&String>) -> Option<u32> {
    word.and_then(|word| word.parse().ok()).filter(|id| *id != u32::MAX)
}

/// The lines of such a file, in fields; none if the image does not have it.
fn read(files: &Files, path: &'static str) -> Result<Vec<Vec<String>>, UserError> {
    let failed = |source| UserError::Read { path, source };
    let Some(Kind::File(source)) = files.get(path.as_bytes()).map(|node| &node.kind) else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    let reader = source.reader().map_err(|error| failed(io::Error::other(error)))?;
    reader.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    Ok(lines.map(|line| line.split(':').map(str::to_owned).collect()).collect())
}

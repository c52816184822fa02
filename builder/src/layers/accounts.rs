//! Users and groups of a tree. Written by us, not by a program of the image: useradd(8) is in some images only, and
//! systemd-sysusers(8) gives ordinary users no number; so all images get the same users in the same way. Follows
//! passwd(5), shadow(5), group(5), gshadow(5), what useradd(8) writes there, and Debian Policy 9.2.2 for the numbers.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rackstick_image::recipe;

use super::{
    configure::failed,
    stage::protocol::{Changes, Failure, Marked, Mistakes, NewGroup, NewUser},
    tree::{Ids, Tree},
};

const PASSWD: &str = "/etc/passwd";
const SHADOW: &str = "/etc/shadow";
const GROUP: &str = "/etc/group";
const GSHADOW: &str = "/etc/gshadow";
/// Mode of the files with passwords, if they are new; they belong to the group `shadow`.
const SHADOW_MODE: u32 = 0o640;
/// Numbers of the system's users and groups that packages don't have for good; taken from the end, as systemd does.
const SYSTEM_IDS: std::ops::RangeInclusive<u32> = 100..=999;
/// First number of ordinary users and groups.
const FIRST_ID: u32 = 1000;
/// A password that nothing matches. Not `!`, which sshd(8) without PAM takes for a locked account.
const NO_PASSWORD: &str = "*";
/// A password that stands in shadow(5) or gshadow(5).
const ELSEWHERE: &str = "x";
/// Home of users that have none.
const NO_HOME: &str = "/nonexistent";
/// Shell of those who don't log in.
const NO_LOGIN: &str = "/usr/sbin/nologin";
const SECONDS_A_DAY: i64 = 86_400;

/// Lines of one of the four files, each split at its colons.
type Lines = Vec<Vec<String>>;

/// Who is in a tree.
pub struct Accounts {
    passwd: Lines,
    shadow: Lines,
    group: Lines,
    gshadow: Lines,
}

/// Makes what a recipe asks for.
pub fn add(tree: &Tree, changes: &Changes, epoch: i64) -> Result<(), Failure> {
    if changes.groups.is_empty() && changes.users.is_empty() {
        return Ok(());
    }
    let mut accounts = Accounts::load(tree)?;
    let mut ids = FreeIds::new(&accounts, changes);
    let days = epoch.div_euclid(SECONDS_A_DAY);
    // Whoever is mistaken is made all the same, so that nobody who names him is blamed: no layer is written then.
    let mut mistakes = Mistakes::default();
    for (name, group) in &changes.groups {
        mistakes.note(accounts.add_group(name, group, &mut ids))?;
    }
    // Those that are there already first: they may be changed, new ones can't be taken for them.
    let (known, new): (Vec<_>, Vec<_>) = changes.users.iter().partition(|(name, _)| accounts.user(name).is_some());
    for (name, user) in known {
        mistakes.note(only_joins(name, user))?;
    }
    for (name, user) in &new {
        mistakes.note(accounts.add_user(tree, name, user, &mut ids, days))?;
    }
    for (name, user) in &changes.users {
        for group in &user.value.groups {
            mistakes.note(accounts.join(name, group))?;
        }
    }
    accounts.hide_passwords(days);
    accounts.store(tree)?;
    for (name, user) in new {
        mistakes.note(make_home(tree, &accounts, name, user))?;
    }
    for (name, user) in &changes.users {
        mistakes.note(authorize(tree, &accounts, name, user))?;
    }
    mistakes.tell()
}

/// Numbers that nobody has.
struct FreeIds {
    taken: BTreeSet<u32>,
}

impl FreeIds {
    fn new(accounts: &Accounts, changes: &Changes) -> Self {
        let used = accounts.passwd.iter().chain(&accounts.group).filter_map(|line| id(line));
        let fixed = changes.users.values().filter_map(|user| user.value.uid);
        let groups = changes.groups.values().filter_map(|group| group.value.gid);
        Self { taken: used.chain(fixed).chain(groups).collect() }
    }

    /// One that neither a user nor a group has.
    fn take(&mut self, system: bool, mark: usize) -> Result<u32, Failure> {
        let free = |id: &u32| !self.taken.contains(id);
        let found = if system { SYSTEM_IDS.rev().find(free) } else { (FIRST_ID..=recipe::UID_MAX).find(free) };
        let found = found
            .ok_or_else(|| Failure::mistake(mark, "no number is free for it", "leave others out, or name a number"))?;
        self.taken.insert(found);
        Ok(found)
    }
}

impl Accounts {
    /// Reads them.
    pub fn load(tree: &Tree) -> Result<Self, Failure> {
        let lines = |path: &str| -> Result<Lines, Failure> {
            let bytes = tree.read(Path::new(path)).map_err(failed(path))?.unwrap_or_default();
            let text =
                String::from_utf8(bytes).map_err(|_| Failure::Other(format!("{path} of the image is not UTF-8")))?;
            Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
        };
        Ok(Self { passwd: lines(PASSWD)?, shadow: lines(SHADOW)?, group: lines(GROUP)?, gshadow: lines(GSHADOW)? })
    }

    /// The number of a user.
    pub fn uid(&self, name: &Marked<String>) -> Result<u32, Failure> {
        find(&self.passwd, &name.value).and_then(|line| id(line)).ok_or_else(|| unknown("user", name, &self.passwd))
    }

    /// The number of a group.
    pub fn gid(&self, name: &Marked<String>) -> Result<u32, Failure> {
        find(&self.group, &name.value).and_then(|line| id(line)).ok_or_else(|| unknown("group", name, &self.group))
    }

    /// A user's line of passwd(5).
    fn user(&self, name: &str) -> Option<&Vec<String>> {
        find(&self.passwd, name)
    }

    fn add_group(&mut self, name: &str, group: &Marked<NewGroup>, ids: &mut FreeIds) -> Result<(), Failure> {
        let Marked { value: NewGroup { gid, system }, mark } = group;
        if find(&self.group, name).is_some() {
            let message = format!("the image has a group `{name}` already");
            return Err(Failure::mistake(*mark, message, "a package made it: leave it out here, or take another name"));
        }
        let gid = match gid {
            Some(gid) => unused(&self.group, *gid, "gid", *mark),
            None => ids.take(*system, *mark),
        };
        self.push_group(name, *gid.as_ref().unwrap_or(&0));
        gid.map(drop)
    }

    fn push_group(&mut self, name: &str, gid: u32) {
        self.group.push(fields([name, ELSEWHERE, &gid.to_string(), ""]));
        self.gshadow.push(fields([name, NO_PASSWORD, "", ""]));
    }

    fn add_user(
        &mut self,
        tree: &Tree,
        name: &str,
        user: &Marked<NewUser>,
        ids: &mut FreeIds,
        days: i64,
    ) -> Result<(), Failure> {
        let Marked { value: user, mark } = user;
        let mut mistakes = Mistakes::default();
        if name.contains(|char: char| char.is_ascii_uppercase() || char == '.') {
            let message = format!("the image has no user `{name}`");
            let hint = "a new one has a name of lower-case letters, digits, `_` and `-`";
            mistakes.note::<()>(Err(Failure::mistake(*mark, message, hint)))?;
        }
        let uid = match user.uid {
            Some(uid) => unused(&self.passwd, uid, "uid", *mark),
            None => ids.take(user.system, *mark),
        };
        let uid = mistakes.note(uid)?.unwrap_or(0);
        let gid = match (&user.group, find(&self.group, name).and_then(|line| id(line))) {
            (Some(group), _) => mistakes.note(self.gid(group))?.unwrap_or(0),
            (None, Some(gid)) => gid,
            (None, None) => {
                // Its own number, unless a group has that.
                let free = by_id(&self.group, uid).is_none();
                let gid = if free { uid } else { mistakes.note(ids.take(user.system, *mark))?.unwrap_or(0) };
                self.push_group(name, gid);
                gid
            }
        };
        let shell = mistakes.note(shell(tree, user))?.unwrap_or_default();
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let comment = user.comment.as_deref().unwrap_or_default();
        self.passwd.push(fields([name, ELSEWHERE, &uid, &gid, comment, &home(name, user).to_string_lossy(), &shell]));
        self.shadow.push(aged(name, NO_PASSWORD, days));
        mistakes.tell()
    }

    /// Puts a user into a group.
    fn join(&mut self, user: &str, group: &Marked<String>) -> Result<(), Failure> {
        self.gid(group)?;
        for lines in [&mut self.group, &mut self.gshadow] {
            let Some(members) = lines.iter_mut().find(|line| line[0] == group.value).and_then(|line| line.get_mut(3))
            else {
                continue;
            };
            if members.split(',').all(|member| member != user) {
                if !members.is_empty() {
                    members.push(',');
                }
                members.push_str(user);
            }
        }
        Ok(())
    }

    /// Moves every password that anybody may read to where only root does, as pwconv(8) and grpconv(8) do: half-moved
    /// ones are what pwck(8) and grpck(8) complain of.
    fn hide_passwords(&mut self, days: i64) {
        for line in self.passwd.iter_mut().filter(|line| line.len() == 7 && is_local(line)) {
            let password = std::mem::replace(&mut line[1], ELSEWHERE.to_owned());
            if find(&self.shadow, &line[0]).is_none() {
                let password = if password == ELSEWHERE { NO_PASSWORD } else { &password };
                self.shadow.push(aged(&line[0], password, days));
            }
        }
        for line in self.group.iter_mut().filter(|line| line.len() == 4 && is_local(line)) {
            let password = std::mem::replace(&mut line[1], ELSEWHERE.to_owned());
            if find(&self.gshadow, &line[0]).is_none() {
                let password = if password == ELSEWHERE { NO_PASSWORD } else { &password };
                self.gshadow.push(fields([&line[0], password, "", &line[3]]));
            }
        }
    }

    fn store(&self, tree: &Tree) -> Result<(), Failure> {
        let secret = Ids { uid: 0, gid: find(&self.group, "shadow").and_then(|line| id(line)).unwrap_or(0) };
        let root = Ids { uid: 0, gid: 0 };
        for (path, lines, ids, mode) in [
            (PASSWD, &self.passwd, root, 0o644),
            (GROUP, &self.group, root, 0o644),
            (SHADOW, &self.shadow, secret, SHADOW_MODE),
            (GSHADOW, &self.gshadow, secret, SHADOW_MODE),
        ] {
            let text: String = lines.iter().map(|line| line.join(":") + "\n").collect();
            let path = Path::new(path);
            let store = || {
                tree.write(path, text.as_bytes(), 0o600)?;
                tree.own(path, ids, mode)
            };
            store().map_err(failed(&path.display().to_string()))?;
        }
        Ok(())
    }
}

/// Of a user that is there, only groups and keys can be added to: the rest is its package's.
fn only_joins(name: &str, user: &Marked<NewUser>) -> Result<(), Failure> {
    let Marked { value: user, mark } = user;
    let joins =
        NewUser { groups: user.groups.clone(), authorized_keys: user.authorized_keys.clone(), ..NewUser::default() };
    if *user == joins {
        return Ok(());
    }
    let message = format!("the image has a user `{name}` already");
    Err(Failure::mistake(*mark, message, "a package made it: only `groups` and `authorized_keys` can be given here"))
}

fn home(name: &str, user: &NewUser) -> PathBuf {
    match &user.home {
        Some(home) => home.clone(),
        None if user.system => PathBuf::from(NO_HOME),
        None => Path::new("/home").join(name),
    }
}

fn shell(tree: &Tree, user: &NewUser) -> Result<String, Failure> {
    let is_there = |shell: &str| tree.is_file(Path::new(shell)).map_err(failed(shell));
    match &user.shell {
        None if user.system => Ok(NO_LOGIN.to_owned()),
        None if is_there("/bin/bash")? => Ok("/bin/bash".to_owned()),
        None => Ok("/bin/sh".to_owned()),
        Some(shell) if is_there(&shell.value)? => Ok(shell.value.clone()),
        Some(shell) => {
            let message = format!("the image has no `{}`", shell.value);
            Err(Failure::mistake(shell.mark, message, "name a shell that is there, or add its package to `packages`"))
        }
    }
}

/// Makes a new user's home; one that a package or another user brought stays as it is.
fn make_home(tree: &Tree, accounts: &Accounts, name: &str, user: &Marked<NewUser>) -> Result<(), Failure> {
    let home = home(name, &user.value);
    let at = failed(&home.display().to_string());
    let Some(ids) = accounts.user(name).and_then(|line| ids(line)) else { return Ok(()) };
    if home == Path::new(NO_HOME) || tree.stat(&home).map_err(&at)?.is_some() {
        return Ok(());
    }
    // As adduser(8): what people have at home is their own business, a service's home mostly is not.
    let mode = if user.value.system { 0o755 } else { 0o700 };
    tree.create_dirs(&home, &mut |_| ()).and_then(|_| tree.own(&home, ids, mode)).map_err(at)
}

fn authorize(tree: &Tree, accounts: &Accounts, name: &str, user: &Marked<NewUser>) -> Result<(), Failure> {
    let Marked { value: user, mark } = user;
    if user.authorized_keys.is_empty() {
        return Ok(());
    }
    let line = accounts.user(name);
    let home = line.and_then(|line| line.get(5)).map_or(NO_HOME, String::as_str);
    let at = failed(home);
    let Some(ids) = line.and_then(|line| ids(line)).filter(|_| tree.dir(Path::new(home)).is_ok()) else {
        let message = format!("user `{name}` has no home for its keys: the image has no folder `{home}`");
        return Err(Failure::mistake(*mark, message, "give it one with `home`"));
    };
    let folder = Path::new(home).join(".ssh");
    let file = folder.join("authorized_keys");
    let write = || {
        tree.create_dirs(&folder, &mut |_| ())?;
        tree.own(&folder, ids, 0o700)?;
        let mut keys = tree.read(&file)?.unwrap_or_default();
        user.authorized_keys.iter().for_each(|key| keys.extend_from_slice(format!("{key}\n").as_bytes()));
        tree.write(&file, &keys, 0o600)?;
        tree.own(&file, ids, 0o600)
    };
    write().map_err(at)
}

fn find<'a>(lines: &'a Lines, name: &str) -> Option<&'a Vec<String>> {
    lines.iter().find(|line| line[0] == name)
}

fn by_id(lines: &Lines, wanted: u32) -> Option<&Vec<String>> {
    lines.iter().find(|line| id(line) == Some(wanted))
}

/// Lines with `+` and `-` stand for users of a directory service (nsswitch.conf(5), "compat").
fn is_local(line: &[String]) -> bool {
    !line[0].starts_with(['+', '-'])
}

/// The third field, of users and groups alike.
fn id(line: &[String]) -> Option<u32> {
    line.get(2)?.parse().ok()
}

fn ids(line: &[String]) -> Option<Ids> {
    Some(Ids { uid: id(line)?, gid: line.get(3)?.parse().ok()? })
}

fn unused(lines: &Lines, id: u32, key: &str, mark: usize) -> Result<u32, Failure> {
    match by_id(lines, id) {
        None => Ok(id),
        Some(other) => {
            let message = format!("{id} is the `{key}` of `{}` already", other[0]);
            Err(Failure::mistake(mark, message, "take another one, or leave it out to get one that is free"))
        }
    }
}

fn unknown(what: &str, name: &Marked<String>, lines: &Lines) -> Failure {
    let message = format!("the image has no {what} `{}`", name.value);
    let hint = match recipe::closest(&name.value, lines.iter().map(|line| line[0].as_str())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("packages bring some, and `[{what}s.{}]` makes one", name.value),
    };
    Failure::mistake(name.mark, message, hint)
}

/// A line of shadow(5) as useradd(8) would write it on that day.
fn aged(name: &str, password: &str, days: i64) -> Vec<String> {
    fields([name, password, &days.to_string(), "0", "99999", "7", "", "", ""])
}

fn fields<const N: usize>(fields: [&str; N]) -> Vec<String> {
    fields.map(str::to_owned).to_vec()
}

//! Users, groups, and files that belong to them. The judges are pwck, grpck and, from inside, getent and id.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, process::Command};

use rackstick::layers::{
    Additions, Error, RecipeFile,
    stage::{
        self,
        protocol::{Changes, Marked, Mistake, NewGroup, NewUser},
    },
};
use rackstick_image::recipe::Owner;

use super::Bench;

fn marked<T>(value: T, mark: usize) -> Marked<T> {
    Marked { value, mark }
}

fn named(name: &str, mark: usize) -> Marked<String> {
    marked(name.to_owned(), mark)
}

fn users<const N: usize>(users: [(&str, NewUser); N]) -> BTreeMap<String, Marked<NewUser>> {
    users.into_iter().enumerate().map(|(mark, (name, user))| (name.to_owned(), marked(user, mark))).collect()
}

fn groups<const N: usize>(groups: [(&str, Option<u32>, bool); N]) -> BTreeMap<String, Marked<NewGroup>> {
    let groups = groups.into_iter().enumerate();
    groups.map(|(mark, (name, gid, system))| (name.to_owned(), marked(NewGroup { gid, system }, mark))).collect()
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGh5cG90aGV0aWNhbCBrZXkgb2YgYWxpY2UgISEhISEh alice@laptop";

/// An editor, a service with its own group, a user of the base; and files of theirs, made in `dir`.
pub fn of_alice(dir: &Path) -> (Changes, Vec<RecipeFile>) {
    let alice = NewUser {
        groups: vec![named("editors", 0), named("daemon", 0)],
        comment: Some("Alice Ä".to_owned()),
        authorized_keys: vec![KEY.to_owned()],
        ..NewUser::default()
    };
    let feeder = NewUser { system: true, home: Some("/var/lib/feeder".into()), ..NewUser::default() };
    let daemon = NewUser { groups: vec![named("editors", 0)], ..NewUser::default() };
    let quiet = NewUser { system: true, uid: Some(150), group: Some(named("daemon", 0)), ..NewUser::default() };
    let changes = Changes {
        groups: groups([("editors", Some(2000), false), ("feeders", None, true)]),
        users: users([("alice", alice), ("feeder", feeder), ("daemon", daemon), ("quiet", quiet)]),
        ..Changes::default()
    };
    let site = dir.join("site");
    // Made by the first who asks.
    if !site.exists() {
        fs::create_dir(&site).unwrap();
        fs::write(site.join("page"), "page").unwrap();
        symlink("page", site.join("link")).unwrap();
    }
    let file = |path: &str, source: &str, owner: Option<Owner>, group: Option<Owner>, mode: Option<u32>| RecipeFile {
        path: path.into(),
        source: dir.join(source),
        mode,
        owner: owner.map(|owner| marked(owner, 0)),
        group: group.map(|group| marked(group, 0)),
    };
    let name = |name: &str| Some(Owner::Name(name.to_owned()));
    let files = vec![
        file("/srv/site", "site", name("alice"), name("editors"), Some(0o640)),
        file("/srv/numbers", "site/page", Some(Owner::Id(4242)), Some(Owner::Id(4343)), Some(0o4711)),
        file("/srv/group-only", "site/page", None, name("feeders"), None),
        file("/home/alice/.profile", "site/page", name("alice"), None, None),
    ];
    (changes, files)
}

fn ask(program: &mut Command) -> String {
    let output = program.output().unwrap();
    assert!(output.status.success(), "{program:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn users_and_groups_are_whole_for_other_peoples_tools_and_files_are_theirs() {
    let bench = Bench::new();
    let base = bench.base();
    // What package passwd brings: the rest of the shadow files, and a shell for those that don't log in.
    let passwd = bench.workshop.draft("passwd");
    passwd.file("/usr/sbin/nologin", b"#!/bin/sh\nexit 1\n", 0o755).file(
        "/etc/shadow",
        b"root:*:1:0:99999:7:::\n",
        0o640,
    );
    let (changes, files) = of_alice(bench.dir.path());
    let additions = Additions { packages: vec![passwd.build()], files, changes };
    let layers = bench.layers.image("test", &base, &additions, &|_| ()).unwrap();
    let root = bench.merged(&base, &layers);

    // Homes of the base's own users are not asked for.
    fs::create_dir_all(root.join("root")).unwrap();
    for checker in ["pwck", "grpck"] {
        let output = Command::new(checker).args(["-q", "-r", "-R"]).arg(&root).output().unwrap();
        assert!(output.status.success(), "{checker}: {output:?}");
    }
    let inside = |arguments: &[&str]| ask(Command::new("chroot").arg(&root).args(arguments));
    assert_eq!(inside(&["getent", "passwd", "alice"]), "alice:x:1000:1000:Alice Ä:/home/alice:/bin/sh\n");
    assert_eq!(
        inside(&["id", "alice"]),
        "uid=1000(alice) gid=1000(alice) groups=1000(alice),1(daemon),2000(editors)\n"
    );
    assert_eq!(inside(&["id", "-Gn", "daemon"]), "daemon editors\n");
    assert_eq!(inside(&["getent", "group", "editors"]), "editors:x:2000:alice,daemon\n");
    // The highest free numbers of the system's: the group came first.
    assert_eq!(inside(&["getent", "group", "feeders"]), "feeders:x:999:\n");
    assert_eq!(inside(&["getent", "passwd", "feeder"]), "feeder:x:998:998::/var/lib/feeder:/usr/sbin/nologin\n");
    assert_eq!(inside(&["getent", "passwd", "quiet"]), "quiet:x:150:1::/nonexistent:/usr/sbin/nologin\n");
    // No password, and the lock's date.
    assert_eq!(inside(&["getent", "shadow", "alice"]), "alice:*:19675:0:99999:7:::\n");
    assert_eq!(inside(&["getent", "shadow", "root"]), "root:*:1:0:99999:7:::\n");
    for (path, expected) in [
        ("/home/alice", "alice:alice 700"),
        ("/home/alice/.ssh", "alice:alice 700"),
        ("/home/alice/.ssh/authorized_keys", "alice:alice 600"),
        ("/home/alice/.profile", "alice:root 644"),
        ("/var/lib/feeder", "feeder:feeder 755"),
        ("/srv", "root:root 755"),
        ("/srv/site", "alice:editors 755"),
        ("/srv/site/page", "alice:editors 640"),
        ("/srv/site/link", "alice:editors 777"),
        ("/srv/numbers", "UNKNOWN:UNKNOWN 4711"),
        ("/srv/group-only", "root:feeders 644"),
        ("/etc/shadow", "root:root 640"),
    ] {
        assert_eq!(inside(&["stat", "-c", "%U:%G %a", path]).trim_end(), expected, "{path}");
    }
    assert_eq!(inside(&["stat", "-c", "%u:%g", "/srv/numbers"]), "4242:4343\n");
    let keys = root.join("home/alice/.ssh/authorized_keys");
    assert_eq!(fs::read_to_string(&keys).unwrap(), format!("{KEY}\n"));
    let mut unlisted = fs::read_dir(root.join("etc")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(unlisted.all(|name| !name.to_string_lossy().ends_with('-')), "no backups are left");
}

#[test]
fn what_does_not_fit_the_image_is_refused_with_its_mark_and_a_hint() {
    let bench = Bench::new();
    let base = bench.base();
    let user = |name: &str, user: NewUser| Changes {
        users: users([("aa", NewUser::default()), (name, user)]),
        ..Changes::default()
    };
    let plain = NewUser::default;
    let refused = |additions: Additions| {
        let error = bench.layers.image("test", &base, &additions, &|_| ()).unwrap_err();
        let Error::Stage { source: stage::Error::Recipe(mut mistakes), .. } = error else { panic!("{error:?}") };
        let Mistake { mark, message, hint } = mistakes.pop().unwrap();
        assert_eq!(mistakes, [], "nothing else is blamed");
        (mark, message, hint)
    };
    for (changes, mark, message, hint) in [
        (user("daemon", NewUser { uid: Some(5), ..plain() }), 1, "a user `daemon` already", "only `groups`"),
        (user("Alice", plain()), 1, "no user `Alice`", "lower-case"),
        (user("b", NewUser { uid: Some(1), ..plain() }), 1, "1 is the `uid` of `daemon` already", "leave it out"),
        (
            user("b", NewUser { groups: vec![named("daemn", 7)], ..plain() }),
            7,
            "no group `daemn`",
            "did you mean `daemon`?",
        ),
        (user("b", NewUser { group: Some(named("web", 8)), ..plain() }), 8, "no group `web`", "[groups.web]"),
        (user("b", NewUser { shell: Some(named("/bin/fish", 9)), ..plain() }), 9, "no `/bin/fish`", "packages"),
        (
            user("b", NewUser { system: true, authorized_keys: vec![KEY.to_owned()], ..plain() }),
            1,
            "no home for its keys",
            "`home`",
        ),
        (
            Changes { groups: groups([("a", None, false), ("daemon", None, false)]), ..Changes::default() },
            1,
            "a group `daemon` already",
            "leave it out",
        ),
        (
            Changes { groups: groups([("a", Some(1), false)]), ..Changes::default() },
            0,
            "1 is the `gid` of `daemon` already",
            "leave it out",
        ),
    ] {
        let found = refused(Additions { changes, ..Additions::default() });
        assert!(found.0 == mark && found.1.contains(message) && found.2.contains(hint), "{message}: {found:?}");
    }
    let owner = Some(marked(Owner::Name("demon".to_owned()), 3));
    let file = RecipeFile { path: "/srv/x".into(), source: "/etc/hostname".into(), owner, ..RecipeFile::default() };
    let found = refused(Additions { files: vec![file], ..Additions::default() });
    assert_eq!(found, (3, "the image has no user `demon`".to_owned(), "did you mean `daemon`?".to_owned()));
    assert_eq!(bench.leftovers(), [""; 0]);
}

#[test]
fn all_that_does_not_fit_the_image_is_told_at_once() {
    let bench = Bench::new();
    let owned = |path: &str, owner: &str, mark| RecipeFile {
        path: path.into(),
        source: "/etc/hostname".into(),
        owner: Some(marked(Owner::Name(owner.to_owned()), mark)),
        ..RecipeFile::default()
    };
    let shell = NewUser {
        group: Some(named("bees", 19)),
        shell: Some(named("/bin/fish", 20)),
        groups: vec![named("a", 21), named("daemn", 22)],
        authorized_keys: vec![KEY.to_owned()],
        ..NewUser::default()
    };
    let changes = Changes {
        groups: groups([("a", Some(1), false)]),
        users: users([
            ("b", shell),
            ("c", NewUser { group: Some(named("a", 23)), groups: vec![named("d", 24)], ..NewUser::default() }),
            ("d", NewUser { uid: Some(1), ..NewUser::default() }),
        ]),
        timezone: Some(named("Europe/Berlin", 30)),
        locale: Some(named("de_DE.UTF-8", 31)),
        ..Changes::default()
    };
    // What names a user or group of the recipe is not blamed for what is wrong with that.
    let group = |name: &str, mark| Some(marked(Owner::Name(name.to_owned()), mark));
    let files = vec![
        RecipeFile { group: group("d", 45), ..owned("/srv/b", "b", 40) },
        owned("/srv/x", "demon", 41),
        RecipeFile { group: group("web", 43), ..owned("/srv/y", "web", 42) },
    ];
    let additions = Additions { changes, files, ..Additions::default() };
    let error = bench.layers.image("test", &bench.base(), &additions, &|_| ()).unwrap_err();
    let Error::Stage { source: stage::Error::Recipe(mistakes), .. } = error else { panic!("{error:?}") };
    let marks: Vec<usize> = mistakes.iter().map(|mistake| mistake.mark).collect();
    assert_eq!(marks, [0, 19, 20, 2, 22, 30, 31, 41, 42, 43], "{mistakes:?}");
    assert_eq!(bench.leftovers(), [""; 0]);
}

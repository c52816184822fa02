//! Every recipe under `tests/bad-recipes` is refused, with the place and a hint: its stderr is the file beside it.
//! `BLESS=1` writes those files anew; look at the difference before committing it.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn check(folder: &Path, recipe: &str) -> io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_rackstick")).current_dir(folder).args(["check", recipe]).output()
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_bad_recipe_is_refused_with_its_place_and_a_hint() {
    let folder = project().join("tests/bad-recipes");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() > 50, "only {} bad recipes", names.len());
    let mut wrong = Vec::new();
    for name in &names {
        let output = check(&folder, &format!("{name}.toml")).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        assert_eq!(output.stdout, b"", "{name}");
        // `[file:line:column]`, and what to do about it.
        let place = |line: &str| line.contains(&format!("{name}.toml:")) && line.ends_with(']');
        assert!(stderr.lines().any(place), "{name}: no place\n{stderr}");
        assert!(stderr.contains("  help: "), "{name}: no hint\n{stderr}");
        let golden = folder.join(format!("{name}.stderr"));
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &stderr).unwrap();
        } else if fs::read_to_string(&golden).ok().as_deref() != Some(stderr.as_str()) {
            wrong.push(format!("--- {name}.stderr is not what is printed now (BLESS=1 accepts it):\n{stderr}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_recipes_that_users_copy_are_right() {
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(project().join("recipes/.")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    // What is not in git is made as a user makes it.
    let container = copy.path().join("images/appliance.tar");
    let made = Command::new(project().join("ci/appliance")).arg(container).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for entry in fs::read_dir(copy.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|suffix| suffix == "toml") {
            let output = check(&project(), path.to_str().unwrap()).unwrap();
            let stdout = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8(output.stderr).unwrap());
            assert!(stdout.contains(" is fine\n"), "{stdout}");
        }
    }
}

/// An ordinary user's number, which nothing of this machine belongs to.
const USER: &str = "4242";

#[test]
fn what_the_user_may_not_read_is_told_where_the_recipe_names_it() {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // The target folder may lie where only root looks.
    fs::copy(env!("CARGO_BIN_EXE_rackstick"), path("rackstick")).unwrap();
    for (name, text) in [
        (
            "rack.toml",
            "[rack]\nname = 'lab'\nversion = '1'\nbase = 'debian:trixie'\n[repositories.x]\nurl = 'http://x.example'\n\
             suite = 'x'\nkey = 'key.asc'\n[guests.app]\nimage = 'app.toml'\nmemory = '64 MiB'\n[guests.web]\n\
             image = 'web.toml'\nmemory = '64 MiB'\n",
        ),
        ("app.toml", "from = { rootfs = 'root.tar' }\n"),
        (
            "web.toml",
            "[[files]]\npath = '/srv/page'\nsource = 'page'\n[[files]]\npath = '/srv/site'\nsource = 'site'\n\
             [[files]]\npath = '/srv/shut'\nsource = 'shut'\n[[files]]\npath = '/srv/fine'\nsource = 'fine'\n",
        ),
    ] {
        fs::write(path(name), text).unwrap();
    }
    for name in ["site/deeper", "shut", "fine"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    symlink("/nowhere", path("fine/link")).unwrap();
    for name in ["key.asc", "root.tar", "page", "site/deeper/page"] {
        fs::write(path(name), "x").unwrap();
        fs::set_permissions(path(name), Permissions::from_mode(0o600)).unwrap();
    }
    fs::set_permissions(path("shut"), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"])
        .args([&path("rackstick"), Path::new("check"), Path::new("rack.toml")])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    for (place, what) in [
        ("rack.toml:8:7", "key.asc"),
        ("app.toml:1:19", "root.tar"),
        ("web.toml:3:10", "page"),
        ("web.toml:6:10", "site/deeper/page"),
        ("web.toml:9:10", "shut"),
    ] {
        assert!(said.contains(&format!("[{place}]")), "{place}: {said}");
        assert!(said.contains(&format!("can't read `{what}`: Permission denied")), "{what}: {said}");
    }
    // A key does not go into an image.
    assert!(!said.contains("image:") && said.matches("  help: `chmod").count() == 5, "{said}");
    assert_eq!((output.status.code(), said.matches("error:").count()), (Some(1), 5), "{said}");
}

#[test]
fn an_image_recipe_leads_to_the_rack_recipe_that_names_it() {
    for (folder, image, rack) in [
        ("", "recipes/images/web.toml", "recipes/lab.toml"),
        ("recipes", "images/web.toml", "lab.toml"),
        ("recipes/images", "web.toml", "../lab.toml"),
    ] {
        let output = check(&project().join(folder), image).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
        assert!(stderr.contains("this is an image recipe"), "{stderr}");
        assert!(stderr.lines().any(|line| line.contains("help: ") && line.ends_with(&format!(": {rack}"))), "{stderr}");
    }
}

/// A rack with one guest on the LAN.
fn on_the_lan(network: &str, address: &str) -> io::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("web.toml"), "")?;
    let recipe = format!(
        "[rack]\nname = 'lab'\nversion = '1'\nbase = 'debian:trixie'\n[networks.lan]\nuplink = 'auto'\n{network}\n\
         [guests.web]\nimage = 'web.toml'\nmemory = '64 MiB'\naddress = {{ lan = '{address}' }}\n"
    );
    fs::write(folder.path().join("rack.toml"), recipe)?;
    Ok(folder)
}

#[test]
fn a_guest_without_a_way_out_is_warned_of_and_the_recipe_still_fine() {
    let folder = on_the_lan("", "192.168.1.20/24").unwrap();
    let output = check(folder.path(), "rack.toml").unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.contains(" is fine\n"), "{stdout}");
    for part in
        ["warning: guest `web` has no way out", "[rack.toml:11:19]", "[networks.lan]", "gateway = \"192.168.1.1\""]
    {
        assert!(stderr.contains(part), "no {part}: {stderr}");
    }
    for (network, address) in [("gateway = '192.168.1.1'", "192.168.1.20/24"), ("", "dhcp")] {
        let folder = on_the_lan(network, address).unwrap();
        assert_eq!(String::from_utf8(check(folder.path(), "rack.toml").unwrap().stderr).unwrap(), "");
    }
}

#[test]
fn the_mac_address_of_a_guest_on_the_lan_is_said_and_made_as_the_documentation_says() {
    let stdout = check(on_the_lan("", "dhcp").unwrap().path(), "rack.toml").unwrap().stdout;
    // Of another program: the names with their lengths, hashed.
    let script = r"for name in mac lab web lan; do printf '\003\0\0\0\0\0\0\0%s' $name; done | sha256sum | head -c 12";
    let hash = Command::new("sh").args(["-c", script]).output().unwrap().stdout;
    let mut pairs: Vec<u8> =
        hash.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    pairs[0] = pairs[0] & 0xfc | 2;
    let mac: Vec<String> = pairs.iter().map(|byte| format!("{byte:02x}")).collect();
    let stdout = String::from_utf8(stdout).unwrap();
    assert_eq!(mac.len(), 6);
    assert!(stdout.contains(&format!("web (DHCP on lan, MAC {}, 64 MiB)", mac.join(":"))), "{stdout}");
}

#[test]
fn a_lock_of_other_packages_no_longer_fits() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rack.toml"), "[rack]\nname = 'a'\nversion = '1'\nbase = 'debian:trixie'\n").unwrap();
    let output = check(folder.path(), "rack.toml").unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8(output.stderr).unwrap());
    assert!(String::from_utf8(output.stdout).unwrap().contains("rackstick lock rack.toml"));

    let mut lock = "format = 2\nbuilder = '0'\nepoch = 0\nbase = 'debian:trixie'\n\
        [bases.'debian:trixie']\nindexes = []\n\
        [bases.'debian:trixie'.roots]\nhost = ['linux-image-amd64']\n'image:web' = ['nginx']\n\
        [bases.'debian:trixie'.sets]\nhost = ['linux-image-amd64']\n'image:web' = ['nginx']\n"
        .to_owned();
    for name in ["linux-image-amd64", "nginx"] {
        lock.push_str(&format!(
            "[bases.'debian:trixie'.packages.{name}]\nversion = '1'\narchitecture = 'amd64'\narchive = 'debian'\n\
             path = 'pool/main/{name}_1_amd64.deb'\nsize = 1\nsha256 = '{}'\n",
            "0".repeat(64)
        ));
    }
    fs::write(folder.path().join("rack.lock"), lock).unwrap();
    let output = check(folder.path(), "rack.toml").unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for line in [
        "`systemd-boot-efi` was added to `host`",
        "the lock has no set `base`",
        "`image:web` is no longer in the recipe",
    ] {
        assert!(stderr.contains(line), "no line {line}:\n{stderr}");
    }
}

#[test]
fn wrong_usage_is_told_apart_from_a_wrong_recipe() {
    let usage = Command::new(env!("CARGO_BIN_EXE_rackstick")).arg("check").output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    let missing = check(&project(), "no/such/recipe.toml").unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("can't read the recipe no/such/recipe.toml"));
}

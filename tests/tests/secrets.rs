//! Ring 3: what guests are given at deploy time reaches them, and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rackstick_api::rack::{Request, State};
use rackstick_tests::{
    client::curl,
    disk::Partition,
    image::Image,
    place,
    rack::{HEALTHY_LIMIT, Options, Rack, guest},
    tool,
};

/// The data partition's number.
const DATA: u32 = 2;
const DKIM: &str = "the-rigs-dkim-key-5b1f0c";
const PASSWORD: &str = "the-rigs-password-93d2aa";
const NEW_PASSWORD: &str = "the-rigs-new-password-c07e44";

const RACK: &str = r#"
[rack]
name    = "secrets"
version = "1"
base    = "debian:trixie"

[networks.lan]
uplink  = "auto"
address = "dhcp"

[networks.inside]
subnet = "10.30.0.0/24"
nat    = "lan"

[guests.mail]
image   = "page.toml"
memory  = "192 MiB"
address = { inside = "10.30.0.25" }
forward = ["lan:8025/tcp -> 8000"]
health  = { http = "http://:8000/" }

[guests.backup]
image   = "page.toml"
memory  = "192 MiB"
address = { inside = "10.30.0.26" }
forward = ["lan:8026/tcp -> 8000"]
health  = { http = "http://:8000/" }
"#;

/// Proves what it was given, as an ordinary user: one secret in the place that it names, the other as a credential of
/// systemd. Of the lock of the matrix, by the image's name and its package.
const IMAGE: &str = r#"
packages = ["busybox"]
services = ["page"]

[users.keeper]
uid = 444

[secrets.dkim]
owner = "keeper"
group = "mail"
mode  = 0o440

[secrets.password]
path = "/run/credstore/password"

[[files]]
path    = "/usr/local/bin/prove"
mode    = 0o755
content = '''
#!/bin/sh
cd /run/page
{
    echo "dkim $(sha256sum < /run/secrets/dkim)"
    echo "password $(sha256sum < "$CREDENTIALS_DIRECTORY/password")"
    stat -c '%n %U:%G %a' /run/secrets/dkim /run/credstore/password
    echo "on $(stat -f -c %T /run/secrets/dkim)"
    cat /run/credstore/password 2>&1
    ls /rackstick 2>&1
    cat /proc/cmdline
} > index.html
exec busybox httpd -f -p 8000 -h /run/page
'''

[[files]]
path    = "/etc/systemd/system/page.service"
content = '''
[Unit]
Description=One page
# It needs only the network, which is up before systemd: without this it would wait for all that a whole system needs.
DefaultDependencies=no

[Service]
User=keeper
RuntimeDirectory=page
ImportCredential=password
ExecStart=/usr/local/bin/prove

[Install]
WantedBy=sysinit.target
'''
"#;

/// A disk over a file, until dropped.
struct Stick {
    node: String,
    file: PathBuf,
}

impl Stick {
    fn new(file: PathBuf, size: u64) -> Self {
        fs::File::create(&file).unwrap().set_len(size).unwrap();
        let said = tool::ask("losetup", ["--show".as_ref(), "--find".as_ref(), file.as_os_str()]);
        Self { node: said.trim().to_owned(), file }
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        tool::run(Command::new("losetup").args(["-d", &self.node]));
    }
}

fn build(folder: &Path) -> Image {
    let recipe = folder.join("secrets.toml");
    fs::write(&recipe, RACK).unwrap();
    fs::write(folder.join("page.toml"), IMAGE).unwrap();
    fs::copy(place::clone().join("tests/recipes/matrix.lock"), folder.join("secrets.lock")).unwrap();
    let out = folder.join("out");
    tool::output(tool::rackstick().arg("build").arg(recipe).arg("-o").arg(&out));
    Image::only_one_in(&out)
}

/// A folder of values.
fn values(folder: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = folder.join(name);
    for (path, value) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }
    folder
}

/// How often a value stands in a file, whatever it is.
fn count(file: &Path, value: &str) -> usize {
    let mut grep = Command::new("grep");
    let found = tool::run(grep.args(["--text", "--only-matching", "--fixed-strings", value]).arg(file));
    found.stdout.lines().count()
}

fn sha256(value: &str) -> String {
    tool::output(Command::new("sh").args(["-c", "printf %s \"$0\" | sha256sum | cut -d' ' -f1", value]))
        .trim()
        .to_owned()
}

/// Asks a guest for its proof, and looks at all that the rack says for values.
fn prove(rack: &mut Rack, guest_name: &str, port: &str, password: &str) {
    let name = guest_name.to_owned();
    rack.until_status(&format!("{name} to be healthy"), HEALTHY_LIMIT, |status| guest(status, &name).healthy);
    let page = curl(rack.address(port), "/").unwrap();
    println!("{page}");
    for line in [
        format!("dkim {}", sha256(DKIM)),
        format!("password {}", sha256(password)),
        "/run/secrets/dkim keeper:mail 440".to_owned(),
        "/run/credstore/password root:root 400".to_owned(),
        "on tmpfs".to_owned(),
        "Permission denied".to_owned(),
        "No such file".to_owned(),
    ] {
        assert!(page.contains(&line), "no `{line}` in\n{page}");
    }
    let mut told = page + &rack.console() + &format!("{:?}", rack.client().status().unwrap());
    told += &rack.client().text(Request::Console { guest: name }).unwrap();
    for value in [DKIM, PASSWORD, NEW_PASSWORD] {
        assert!(!told.contains(value), "`{value}` was told:\n{told}");
    }
}

#[test]
fn a_flashed_disk_gets_secrets_beside_the_image_and_more_of_them_later() {
    let folder = place::test_folder("secrets-flashed");
    let image = build(&folder);
    // No larger than the image, so that `verify` finds its tables where they belong.
    let stick = Stick::new(folder.join("stick"), fs::metadata(&image.path).unwrap().len());
    let name = stick.node.strip_prefix("/dev/").unwrap();
    let flash = |secrets: &Path| {
        let mut flash = tool::rackstick();
        flash.arg("flash").arg(&image.path).args([stick.node.as_str(), "--confirm", name, "--secrets"]).arg(secrets);
        tool::run(&mut flash)
    };
    let wrong = values(&folder, "wrong", &[("mial/dkim", DKIM)]);
    let refused = flash(&wrong);
    assert!(!refused.success && refused.stderr.contains("did you mean `mail`?"), "{}", refused.stderr);
    assert!(!refused.stderr.contains(DKIM), "{}", refused.stderr);
    assert_eq!(fs::metadata(&stick.file).unwrap().blocks(), 0, "nothing is written before all is known");

    let given = values(&folder, "given", &[("mail/dkim", DKIM)]);
    let said = flash(&given);
    assert!(said.success, "{}", said.stderr);
    assert!(said.stderr.contains("backup/dkim, backup/password, mail/password"), "{}", said.stderr);
    assert_eq!([&stick.file, &image.path].map(|file| count(file, DKIM)), [1, 0]);
    let holds = |of: &Path, names: &str| {
        let said = tool::output(tool::rackstick().arg("inspect").arg(of));
        assert!(said.contains(&format!("no rack has taken yet, so pass it on to nobody: {names}\n")), "{said}");
    };
    holds(&stick.file, "mail/dkim");
    // All else is the image's.
    tool::output(tool::rackstick().arg("verify").arg(&stick.file));

    let more = values(&folder, "more", &[("mail/password", PASSWORD), ("backup/dkim", DKIM)]);
    tool::output(tool::rackstick().arg("secrets").arg(&more).arg(&stick.node));
    holds(&stick.file, "backup/dkim, mail/dkim, mail/password");
    assert_eq!([DKIM, PASSWORD].map(|value| count(&stick.file, value)), [2, 1]);

    // Flashed again, it has what is given then.
    assert!(flash(&given).success);
    holds(&stick.file, "mail/dkim");
    assert_eq!([DKIM, PASSWORD].map(|value| count(&stick.file, value)), [1, 0]);
}

#[test]
fn a_secret_reaches_its_guest_and_stays_on_the_data_partition_and_is_nowhere_else() {
    let folder = place::test_folder("secrets");
    let image = build(&folder);
    let given = values(&folder, "given", &[("mail/dkim", DKIM), ("mail/password", PASSWORD)]);
    let inspect = || tool::output(tool::rackstick().arg("inspect").arg(&image.path));
    let said = inspect();
    for part in ["secret dkim at /run/secrets/dkim (444:8, mode 0440)", "no value is in the image"] {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }

    // What no guest wants is refused before anything starts.
    let wrong = values(&folder, "wrong", &[("mail/dkmi", DKIM)]);
    let refused = tool::run(tool::rackstick().arg("run").arg(&image.path).arg("--secrets").arg(wrong));
    assert!(!refused.success && refused.stderr.contains("did you mean `dkim`?"), "{}", refused.stderr);

    // On a throw-away disk; the guest that was given nothing waits, says so, and keeps nobody else from running.
    let options = Options { secrets: Some(given), ..Options::default() };
    let mut rack = Rack::start("secrets-thrown-away", &image, options.clone());
    prove(&mut rack, "mail", "8025/tcp", PASSWORD);
    let status = rack.until_status("backup to wait", Duration::from_secs(10), |status| {
        guest(status, "backup").detail.contains("waits for secrets dkim, password")
    });
    assert_eq!(guest(&status, "backup").state, State::Waiting);
    let problem = "guest backup waits for secrets dkim, password";
    assert!(status.problems.iter().any(|said| said.contains(problem)), "{:?}", status.problems);
    rack.kill_hard();
    assert_eq!([DKIM, PASSWORD].map(|value| count(&image.path, value)), [0, 0]);
    assert!(inspect().contains("no value is in the image"));

    // On a disk that stays.
    let mut rack = Rack::start("secrets-kept", &image, Options { persist: true, ..options });
    prove(&mut rack, "mail", "8025/tcp", PASSWORD);
    rack.power_off();
    // Each stands once on it, in a file that only root reads.
    let data = Partition::of(&image.path, DATA);
    assert_eq!(data.read_file("state/secrets/mail/dkim"), DKIM.as_bytes());
    assert_eq!([DKIM, PASSWORD].map(|value| count(&image.path, value)), [1, 1]);
    let modes = data.within("ro", "stat -c '%U %a' state/secrets state/secrets/mail state/secrets/mail/*");
    assert_eq!(modes, "root 700\nroot 700\nroot 600\nroot 600\n");

    // A new value, and those of the other guest, for a disk that a rack has used; what was not given again is still
    // there.
    let more = [("mail/password", NEW_PASSWORD), ("backup/dkim", DKIM), ("backup/password", NEW_PASSWORD)];
    tool::output(tool::rackstick().arg("secrets").arg(values(&folder, "more", &more)).arg(&image.path));
    let mut rack = Rack::start("secrets-renewed", &image, Options { persist: true, ..Options::default() });
    prove(&mut rack, "mail", "8025/tcp", NEW_PASSWORD);
    prove(&mut rack, "backup", "8026/tcp", NEW_PASSWORD);
    let status = rack.client().status().unwrap();
    assert!(!status.problems.iter().any(|said| said.contains("secret")), "{:?}", status.problems);
    rack.power_off();
}

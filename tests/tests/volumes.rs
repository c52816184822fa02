//! Ring 3: what guests keep, and what runs where a recipe asks for more than there is.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, time::Duration};

use rackstick_api::rack::{Process, Request, State};
use rackstick_tests::{
    disk::Partition,
    image::Image,
    place,
    rack::{HEALTHY_LIMIT, Options, Rack, guest},
    recipe::Recipes,
    tool,
};

/// The data partition's number.
const DATA: u32 = 2;
/// Says what the volume holds at each start of the guest, and counts the starts on it.
const KEEPER: &str = r#"
[[files]]
path    = "/usr/local/sbin/keeper"
mode    = 0o755
content = '''
#!/bin/sh
cd /var/lib/keeper || exit 1
starts=$(($(cat starts 2>/dev/null || echo 0) + 1))
echo $starts > starts
sync
echo "keeper: start $starts, seed $(cat seed) $(stat -c %U:%G:%a seed), $(df -m --output=size . | tail -n 1) MiB, $(ls -A | xargs)." > /dev/console
'''

[[files]]
path    = "/etc/systemd/system/keeper.service"
content = '''
[Unit]
RequiresMountsFor=/var/lib/keeper
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/keeper
[Install]
WantedBy=multi-user.target
'''

[[files]]
path    = "/var/lib/keeper/seed"
mode    = 0o640
content = "SEED"
"#;

/// A rack whose name server has two volumes and too many vCPUs, and whose web server has no room on any test's machine.
fn build(folder: &Path, version: &str, seed: &str, keeper: &str, spare: &str) -> Image {
    let recipes = Recipes::of_tests();
    let volumes = format!(
        "memory  = \"192 MiB\"\nvcpus = 8\nvolumes.keeper = {{ mount = \"/var/lib/keeper\", size = \"{keeper}\" }}\n\
         volumes.spare = {{ mount = \"/srv/spare\", size = \"{spare}\" }}"
    );
    recipes.edit("pair.toml", "memory  = \"192 MiB\"", &volumes).edit("pair.toml", "\"256 MiB\"", "\"64 GiB\"");
    recipes.edit("pair.toml", "version = \"1\"", &format!("version = \"{version}\""));
    recipes.edit("images/dns.toml", "services = [\"named\"]", "services = [\"named\", \"keeper\"]");
    let last = "source = \"dns/lab.internal.zone\"\n";
    recipes.edit("images/dns.toml", last, &format!("{last}{}", KEEPER.replace("SEED", seed)));
    let out = folder.join(version);
    std::fs::create_dir(&out).unwrap();
    tool::output(tool::rackstick().arg("build").arg(recipes.path("pair.toml")).arg("-o").arg(&out));
    Image::only_one_in(&out)
}

/// Waits until the guest says what it kept at this start, and returns that.
fn kept(rack: &mut Rack, start: u32) -> String {
    let begin = format!("keeper: start {start}, ");
    let line = rack.until(&format!("`{begin}` on the console of dns"), HEALTHY_LIMIT, |rack| {
        let console = rack.client().text(Request::Console { guest: "dns".into() }).ok()?;
        let line = console.lines().rfind(|line| line.contains(&begin) && line.trim_end().ends_with('.'))?;
        Some(line.trim_end().to_owned())
    });
    println!("{:6.1} s {line}", rack.seconds());
    line
}

fn size(line: &str) -> u64 {
    let before = line.split(" MiB").next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no size in `{line}`"))
}

/// What e2fsck says of the volumes on a disk; panics if one is not clean.
fn check(image: &Image) {
    let data = Partition::of(&image.path, DATA);
    let said = data.within("ro", "ls -ls volumes/dns; for volume in volumes/dns/*; do e2fsck -fn $volume 2>&1; done");
    println!("{said}");
    tool::ask("e2fsck", ["-fn", &data.for_e2fsprogs()]);
}

#[test]
fn what_a_guest_keeps_survives_restarts_kills_reboots_and_new_images_and_grows_but_never_shrinks() {
    let folder = place::test_folder("volumes");
    let image = build(&folder, "1", "one", "64 MiB", "96 MiB");
    let mut rack = Rack::start("volumes-first", &image, Options { persist: true, ..Options::default() });
    let first = kept(&mut rack, 1);
    // As the image has it, and nothing else: no `lost+found`.
    assert!(first.contains("seed one root:root:640,") && first.ends_with("seed starts."), "{first}");
    assert!((40..64).contains(&size(&first)), "{first}");

    // What does not fit waits, and says so; what fits runs.
    let status = rack.until_status("dns to be healthy", HEALTHY_LIMIT, |status| guest(status, "dns").healthy);
    let web = guest(&status, "web");
    println!("web: {}\nproblems: {:#?}", web.detail, status.problems);
    assert_eq!(web.state, State::Waiting);
    assert!(web.detail.contains("not enough memory: it needs 65536 MiB"), "{}", web.detail);
    let problem = |part: &str| status.problems.iter().any(|problem| problem.contains(part));
    assert!(problem("these guests can't run: web (65536 MiB)") && problem("dns (8 vCPUs)"), "{:?}", status.problems);

    // A clean stop and start.
    rack.client().order(Request::Stop { guest: "dns".into() }).unwrap();
    rack.until_status("dns to stop", HEALTHY_LIMIT, |status| guest(status, "dns").state == State::Stopped);
    rack.client().order(Request::Start { guest: "dns".into() }).unwrap();
    assert!(kept(&mut rack, 2).contains("seed one"));
    // A crash of its monitor.
    rack.client().order(Request::Kill { process: Process::Vmm("dns".into()) }).unwrap();
    assert!(kept(&mut rack, 3).contains("seed one"));
    // A reboot of the rack.
    rack.client().order(Request::Reboot).unwrap();
    assert!(kept(&mut rack, 4).contains("seed one"));
    // The power button of a PC, while the guest runs.
    rack.press_power_button();
    assert!(rack.console().contains("dns: stopped (it switched itself off)"), "dns did not shut down cleanly");
    check(&image);

    // The same disk with another image, of another recipe: one volume larger, one smaller.
    let newer = build(&folder, "2", "two", "20 GiB", "32 MiB");
    let carried = folder.join("carried");
    std::fs::create_dir(&carried).unwrap();
    let copy = |from: &str, to: &str| format!("mkdir -p {to} && cp -a --sparse=always {from}/. {to}/");
    let carried = carried.to_str().unwrap();
    Partition::of(&image.path, DATA).within("ro", &copy("volumes/dns", carried));
    Partition::of(&newer.path, DATA).within("rw", &copy(carried, "volumes/dns"));

    let mut rack = Rack::start("volumes-second", &newer, Options { persist: true, ..Options::default() });
    let grown = kept(&mut rack, 5);
    assert!(grown.contains("seed one root:root:640,"), "{grown}");
    assert!(size(&grown) > 19 * 1024, "{grown}");
    let status = rack.until_status("the smaller size to be reported", Duration::from_secs(10), |status| {
        status.problems.iter().any(|problem| problem.contains("spare has 96 MiB, the recipe says 32"))
    });
    println!("problems: {:#?}", status.problems);
    rack.until_status("dns to be healthy", HEALTHY_LIMIT, |status| {
        let dns = guest(status, "dns");
        dns.healthy && dns.detail.is_empty()
    });
    rack.power_off();
    check(&newer);
}

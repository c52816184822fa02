//! Ring 3: what an image recipe sets, in a real image of Debian's packages. The judges are the image's own programs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, process::Command};

use rackstick_tests::{
    disk::Partition,
    image::Image,
    place,
    recipe::Recipes,
    tool::{self, Said},
};
use tempfile::TempDir;

/// The layers of an image, copied out of its disk.
struct Layers {
    folder: TempDir,
    /// Their files' names, those above first.
    names: Vec<String>,
}

impl Layers {
    fn of(image: &Image, name: &str) -> Self {
        let folder = tempfile::tempdir_in(place::rig()).unwrap();
        let data = Partition::of(&image.path, 2);
        let names: Vec<String> =
            image.manifest.images[name].layers.iter().rev().map(|layer| layer.digest.to_string()).collect();
        for name in &names {
            data.debugfs(&format!("dump layers/{name} {}", folder.path().join(name).display()));
        }
        Self { folder, names }
    }

    /// What a script prints that runs, as root, in what a guest sees of them.
    fn ask(&self, script: &str) -> String {
        self.mounted("exec chroot /mnt/all sh -ec \"$0\"", script)
    }

    /// Lets the image's own `fsck.erofs` unpack a layer, and compares what comes of that with what this machine's
    /// kernel reads of it.
    fn compare_readers(&self, name: &str) {
        let script = "mount --bind . /mnt/all/media; chroot /mnt/all fsck.erofs --extract=/media/unpacked /media/$0; \
                      diff -r --no-dereference unpacked /mnt/$0; rm -r unpacked";
        self.mounted(script, name);
    }

    /// What a script prints that runs, as root and given `argument` as `$0`, beside the layers: each is in `/mnt`, and
    /// what a guest sees of them in `/mnt/all`.
    fn mounted(&self, script: &str, argument: &str) -> String {
        let mounts: Vec<String> =
            self.names.iter().map(|name| format!("mkdir /mnt/{name}; mount -o loop,ro {name} /mnt/{name};")).collect();
        let lower: Vec<String> = self.names.iter().map(|name| format!("/mnt/{name}")).collect();
        let around = format!(
            "mount -t tmpfs none /mnt; {} mkdir /mnt/all; mount -t overlay -o ro,lowerdir={} none /mnt/all; \
             mount --bind /dev /mnt/all/dev; {script}",
            mounts.join(" "),
            lower.join(":")
        );
        let mut unshare = Command::new("unshare");
        tool::output(unshare.args(["-m", "sh", "-ec", &around, argument]).current_dir(&self.folder))
    }
}

#[test]
fn an_image_has_the_users_files_time_zone_locale_and_commands_of_its_recipe_each_time() {
    let image = Image::settings();
    let layers = Layers::of(image, "settings");
    let ask = |script: &str| layers.ask(script);

    assert_eq!(ask("pwck -q -r; grpck -q -r; echo whole"), "whole\n");
    assert_eq!(
        ask("getent passwd alice feeder of-a-command; getent group editors; id -Gn alice; id -Gn www-data"),
        "alice:x:1000:1000:Alice:/home/alice:/bin/bash\n\
         feeder:x:990:990::/var/lib/feeder:/usr/sbin/nologin\n\
         of-a-command:x:444:100::/home/of-a-command:/bin/sh\n\
         editors:x:2000:alice,www-data\n\
         alice sudo editors\n\
         www-data editors\n"
    );
    assert_eq!(ask("cut -d: -f2 /etc/shadow | LC_ALL=C sort -u"), "!\n!*\n*\n", "nobody has a password");
    assert_eq!(
        ask("stat -c '%U:%G %a' /srv/page /home/alice/.ssh/authorized_keys"),
        "alice:editors 640\nalice:alice 600\n"
    );
    assert_eq!(
        ask("ssh-keygen -lf /home/alice/.ssh/authorized_keys | cut -d' ' -f1,3,4"),
        "256 alice@laptop (ED25519)\n"
    );

    assert_eq!(ask("cat /etc/motd"), "Willkommen in settings\nall 10.30.0.80\n");
    assert_eq!(ask("date --date=@0 +%H:%M%Z; cat /etc/timezone"), "01:00CET\nEurope/Berlin\n");
    assert_eq!(
        ask(". /etc/default/locale; export LANG; date --utc --date=@0 +%A; locale charmap"),
        "Donnerstag\nUTF-8\n"
    );

    assert_eq!(ask("cat /srv/who; tail -n +3 /srv/network | cut -d: -f1 | tr -d ' '"), "0\nlo\n", "no network");
    assert_eq!(ask("cat /srv/built | cut -c1-4; ls /tmp /var/log/x 2>&1 | grep -c x"), "2026\n1\n");
    assert_eq!(
        ask("cd /etc/systemd/system; readlink fstrim.service; ls multi-user.target.wants | grep ssh"),
        "/dev/null\nssh.service\n"
    );
    assert!(image.manifest.images["settings"].cmdline.ends_with(" mitigations=off"));

    // Its layers are compressed, as two other readers of EROFS read them.
    let compressed = image.manifest.images["settings"].layers.iter().filter(|layer| layer.label.ends_with(", zstd"));
    let compressed: Vec<String> = compressed.map(|layer| layer.digest.to_string()).collect();
    assert_eq!(compressed.len(), 3);
    compressed.iter().for_each(|name| layers.compare_readers(name));

    // Once more, every layer made anew.
    let (out, caches) = (tempfile::tempdir_in(place::rig()).unwrap(), place::caches_without_layers());
    let mut again = tool::rackstick();
    again.arg("build").arg(place::clone().join("tests/recipes/settings.toml")).arg("-o").arg(out.path());
    tool::output(again.env("RACKSTICK_CACHE", caches.path()));
    assert_eq!(Image::only_one_in(out.path()).manifest, image.manifest);
}

#[test]
fn what_the_finished_image_refuses_is_shown_where_it_stands_in_the_recipe() {
    let recipes = Recipes::of_tests();
    let build = |addition: &str| -> Said {
        let text = fs::read_to_string(place::clone().join("tests/recipes/images/web.toml")).unwrap();
        fs::write(recipes.path("images/web.toml"), text.replace("services = [\"nginx\"]", addition)).unwrap();
        let mut command = tool::rackstick();
        tool::run(command.arg("build").arg(recipes.path("pair.toml")).arg("-o").arg(recipes.path("out")))
    };
    for (addition, place, message, hint) in [
        ("services = [\"ngnix\"]", ":3:13]", "the image has no unit `ngnix.service`", "did you mean `nginx.service`?"),
        ("services = [\"systemd-udevd\"]", ":3:13]", "can't be enabled, it is static", "[Install]"),
        ("timezone = \"Europe/Berlin\"", ":3:12]", "no time zone `Europe/Berlin`", "add package `tzdata`"),
        ("locale = \"de_DE.UTF-8\"", ":3:10]", "no locale `de_DE.UTF-8`", "add package `locales`"),
        ("users.alice.groups = [\"editors\"]", ":3:23]", "no group `editors`", "[groups.editors]"),
        ("commands = [\"true\", \"echo so; exit 3\"]", ":3:21]", "the command failed (exit status: 3)", "so\n"),
        ("commands = [[\"a2enmod\"]]", ":3:13]", "the command failed", "`a2enmod` can't be started"),
    ] {
        let said = build(addition);
        assert!(!said.success, "{addition}");
        for part in [place, message, hint] {
            assert!(said.stderr.contains(part), "{addition}: no {part} in\n{}", said.stderr);
        }
    }

    // All of it at once: of one image, and of another that is wrong too.
    let text = fs::read_to_string(recipes.path("images/dns.toml")).unwrap();
    let text = format!("users.bob.shell = \"/bin/fish\"\n{text}");
    fs::write(recipes.path("images/dns.toml"), text).unwrap();
    let said = build("services = [\"ngnix\", \"systemd-udevd\"]\ntimezone = \"Europe/Berlin\"");
    assert!(!said.success);
    for message in ["no unit `ngnix", "can't be enabled, it is static", "no time zone", "has no `/bin/fish`"] {
        assert!(said.stderr.contains(message), "no {message} in\n{}", said.stderr);
    }
    assert!(
        !recipes.path("out").read_dir().unwrap().any(|entry| entry
            .unwrap()
            .path()
            .extension()
            .is_some_and(|e| e == "img"))
    );
}

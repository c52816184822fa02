//! Recipes as a whole: the project's own, everything wrong at once, and random damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use super::*;
use crate::{
    digest::VerityDigest,
    guid,
    manifest::{self, Address, Blob, Health, Nic, Protocol, UplinkAddress},
};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load_text(text: &str) -> Result<Rack, Vec<Diagnostic>> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.toml"), "").unwrap();
    load::parse(&folder.path().join("rack.toml"), text.as_bytes().to_vec())
}

const SMALL: &str = r#"
    [rack]
    name = "lab"
    version = "1"
    base = "debian:trixie"
    [networks.lan]
    uplink = "auto"
    [networks.servers]
    subnet = "10.20.0.0/29"
"#;

#[test]
fn the_lab_is_read_as_its_recipe_says() {
    let rack = load(&project().join("recipes/lab.toml")).unwrap();
    assert_eq!((&*rack.name, &*rack.domain, &*rack.base.value), ("lab", "lab.internal", "debian:trixie"));
    let lan = Network::Uplink { nic: Nic::Auto, address: UplinkAddress::Dhcp, gateway: None, resolver: None };
    assert_eq!(rack.networks["lan"], lan);
    let servers = Network::Private { subnet: "10.20.0.0/24".parse().unwrap(), nat: Some("lan".to_owned()) };
    assert_eq!(rack.networks["servers"], servers);
    let web = &rack.guests["web"];
    assert_eq!((web.image.as_str(), web.vcpus, web.memory_mib), ("web", 1, 256));
    assert_eq!(web.addresses["servers"], Address::Static { address: [10, 20, 0, 80].into(), prefix: 24 });
    assert_eq!((web.forwards[0].port, web.forwards[0].guest_port, web.forwards[0].protocol), (8080, 80, Protocol::Tcp));
    assert_eq!(web.health, Some(Health::Http { port: 80, path: "/".to_owned() }));
    assert_eq!(web.after, ["dns", "db"]);
    assert_eq!(rack.guests["dns"].forwards.len(), 2);
    let package = &rack.images["dns"].packages[0];
    assert_eq!(package.value, "bind9");
    let Place { source, span } = &package.place;
    assert_eq!(&source.text[span.clone()], "\"bind9\"");
    assert_eq!(rack.images["dns"].services[0].value, "named.service");
    for file in &rack.images["dns"].files {
        let Content::File(path) = &file.content else { panic!("{file:?}") };
        assert!(path.is_file(), "{path:?}");
    }
}

#[test]
fn a_static_uplink_and_everything_left_out_have_their_meaning() {
    let rack =
        load_text(&SMALL.replace("\"auto\"", "\"eth0\"\naddress = \"192.0.2.9/24\"\ngateway = \"192.0.2.1\"")).unwrap();
    let address = UplinkAddress::Static { address: [192, 0, 2, 9].into(), prefix: 24 };
    let (nic, gateway) = (Nic::Name("eth0".to_owned()), Some([192, 0, 2, 1].into()));
    assert_eq!(rack.networks["lan"], Network::Uplink { nic, address, gateway, resolver: None });
    assert_eq!(rack.domain, "lab.internal");
    assert!(rack.guests.is_empty());
}

#[test]
fn of_two_uplinks_one_brings_the_way_out_and_the_other_has_an_address_of_its_own() {
    let second =
        |keys: &str| load_text(&format!("{}[networks.wan]\nuplink = 'eth1'\n{keys}", SMALL.replace("auto", "eth0")));
    assert!(second("address = '192.0.2.9/24'\nresolver = '192.0.2.1'\n").is_ok());
    for bad in ["", "address = 'dhcp'\n", "address = '192.0.2.9/24'\ngateway = '192.0.2.1'\n"] {
        let [wrong] = &second(bad).unwrap_err()[..] else { panic!("{bad}") };
        assert!(wrong.to_string().contains("a second way out, beside network `lan`"), "{wrong}");
    }
}

#[test]
fn a_guest_has_the_volumes_that_its_recipe_gives_it() {
    let guest = "[guests.a]\nimage = 'web.toml'\nmemory = '64 MiB'\n\
                 volumes.mail = { mount = '/var/mail', size = '20 GiB' }\nvolumes.keys = { mount = '/etc/keys', size = '32 MiB' }\n";
    let rack = load_text(&format!("{SMALL}{guest}")).unwrap();
    let manifest = manifest(&rack, built(&rack), guid::derive(&[b"data"])).unwrap();
    let found: Vec<_> = manifest.guests[0].volumes.iter().map(|v| (&*v.name, &*v.mount, v.size_mib)).collect();
    assert_eq!(found, [("keys", "/etc/keys", 32), ("mail", "/var/mail", 20 << 10)]);
}

#[test]
fn a_guest_on_the_lan_asks_dhcp_or_has_an_address_with_a_prefix() {
    let guest = |address: &str| {
        format!("[guests.a]\nimage = 'web.toml'\nmemory = '64 MiB'\naddress = {{ lan = '{address}' }}\n")
    };
    let lan = SMALL.replace("\"auto\"", "\"52:54:00:AB:cd:EF\"\ngateway = \"192.0.2.1\"\nresolver = \"192.0.2.7\"");
    let rack = load_text(&format!("{lan}{}", guest("dhcp"))).unwrap();
    assert_eq!(rack.guests["a"].addresses["lan"], Address::Dhcp);
    let Network::Uplink { nic, gateway, resolver, .. } = &rack.networks["lan"] else { panic!() };
    assert_eq!(nic, &Nic::Mac("52:54:00:ab:cd:ef".to_owned()));
    assert_eq!((*gateway, *resolver), (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 7].into())));
    let rack = load_text(&format!("{lan}{}", guest("192.0.2.20/24"))).unwrap();
    assert_eq!(rack.guests["a"].addresses["lan"], Address::Static { address: [192, 0, 2, 20].into(), prefix: 24 });
    // Without a prefix, the gateway's own, out of its reach, within a private network, no host's.
    for bad in ["192.0.2.20", "192.0.2.1/24", "192.0.3.20/24", "10.20.0.3/8", "192.0.2.255/24", "auto"] {
        assert!(load_text(&format!("{lan}{}", guest(bad))).is_err(), "{bad}");
    }
}

#[test]
fn a_guest_goes_out_where_there_is_a_router() {
    let way_out = |networks: &str, address: &str, more: &str| {
        let text = format!(
            "{}[networks.nat]\nsubnet = '10.30.0.0/24'\nnat = 'lan'\n{networks}[guests.a]\nimage = 'web.toml'\n\
             memory = '64 MiB'\naddress = {{ {address} }}\n{more}",
            SMALL.replace("auto", "eth0")
        );
        let rack = load_text(&text).unwrap_or_else(|wrong| panic!("{wrong:?}"));
        let manifest = manifest(&rack, built(&rack), guid::derive(&[b"data"])).unwrap();
        let guest = &manifest.guests[0];
        let network = guest.interfaces[guest.way_out(&manifest.networks).unwrap()].network.clone();
        (network, rack.warnings.into_iter().map(|warning| warning.to_string()).collect::<Vec<_>>())
    };
    // Networks by name: `a` comes first, and leads nowhere.
    let second = "[networks.a]\nuplink = 'eth1'\naddress = '192.0.2.9/24'\n";
    let (own, dhcp, servers, nat) =
        ("a = '192.0.2.20/24'", "lan = 'dhcp'", "servers = '10.20.0.3'", "nat = '10.30.0.3'");
    let forward = "forward = ['lan:80/tcp']\n";
    for (address, more, network) in [
        (format!("{own}, {dhcp}, {nat}"), "", "lan"),
        (format!("{own}, {servers}, {nat}"), "", "nat"),
        (format!("{dhcp}, {servers}"), "", "lan"),
        (format!("{dhcp}, {servers}, {nat}"), forward, "nat"),
        (format!("{dhcp}, {servers}"), forward, "servers"),
    ] {
        assert_eq!(way_out(second, &address, more), (network.to_owned(), vec![]), "{address} {more}");
    }
    for address in [own.to_owned(), format!("{own}, {servers}")] {
        let (network, warnings) = way_out(second, &address, "");
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert_eq!(network, "a");
        assert!(warning.contains("network `a` has no `gateway`") && warning.contains("on `lan` too"), "{warning}");
    }
}

#[test]
fn a_name_that_a_rack_gives_to_no_nic_is_warned_of() {
    let warnings = |uplink: &str| load_text(&SMALL.replace("auto", uplink)).unwrap().warnings;
    let [warning] = &warnings("enp3s0")[..] else { panic!() };
    assert!(warning.to_string().contains("hardly `enp3s0`"), "{warning}");
    assert!(warning.hint.as_deref().is_some_and(|hint| hint.contains("MAC address")), "{warning:?}");
    for fine in ["eth0", "eth12", "auto", "52:54:00:ab:cd:ef"] {
        assert_eq!(warnings(fine), [], "{fine}");
    }
}

#[test]
fn a_mac_address_may_have_dashes_and_names_one_nic_however_it_is_written() {
    let rack = load_text(&SMALL.replace("auto", "52-54-00-AB-CD-EF")).unwrap();
    let Network::Uplink { nic, .. } = &rack.networks["lan"] else { panic!() };
    assert_eq!(nic, &Nic::Mac("52:54:00:ab:cd:ef".to_owned()));
    assert!(load_text(&SMALL.replace("auto", "52-54:00:ab:cd:ef")).is_err());
    let second = "[networks.b]\nuplink = '52:54:00:ab:cd:ef'\naddress = '192.0.2.9/24'\n";
    let twice = load_text(&format!("{}{second}", SMALL.replace("auto", "52-54-00-AB-CD-EF"))).unwrap_err();
    assert!(twice[0].to_string().contains("this could be the NIC of network `lan`"), "{twice:?}");
}

#[test]
fn a_volume_is_where_programs_keep_data_and_not_what_the_image_brings() {
    let mounted = |mount: &str| {
        load_text(&format!(
            "{SMALL}[guests.a]\nimage = 'web.toml'\nmemory = '64 MiB'\nvolumes.v = {{ mount = '{mount}', size = '1 GiB' }}\n"
        ))
    };
    for good in ["/srv", "/home", "/opt/app", "/var/lib/bind", "/etc/keys", "/usr/local", "/usr/local/share/x"] {
        assert!(mounted(good).is_ok(), "{good}");
    }
    for bad in [
        "/",
        "/usr",
        "/usr/lib/systemd",
        "/usr/localx",
        "/usr/share/x",
        "/boot/efi",
        "/etc",
        "/etc/systemd/system",
        "/var",
        "/var/lib",
        "/var/lib/dpkg/info",
        "/proc",
        "/proc/x",
        "/sys/fs",
        "/dev/shm",
        "/run/x",
        "/tmp",
        "/bin/x",
        "/lib/modules",
    ] {
        let [wrong] = &mounted(bad).unwrap_err()[..] else { panic!("{bad}") };
        assert!(wrong.hint.is_some() && wrong.to_string().contains(&format!("`{bad}`")), "{bad}: {wrong}");
    }
}

#[test]
fn guests_with_the_same_image_recipe_share_one_image() {
    let guests =
        "[guests.a]\nimage = 'web.toml'\nmemory = '64 MiB'\n[guests.b]\nimage = './web.toml'\nmemory = '1 GiB'\n";
    let rack = load_text(&format!("{SMALL}{guests}")).unwrap();
    assert_eq!(rack.images.len(), 1);
    assert_eq!(rack.guests["a"].image, rack.guests["b"].image);
}

#[test]
fn every_usable_address_of_a_subnet_can_be_a_guests() {
    for (last, right) in [(0, false), (1, false), (2, true), (6, true), (7, false), (8, false)] {
        let guest =
            format!("[guests.a]\nimage = 'web.toml'\nmemory = '64 MiB'\naddress = {{ servers = '10.20.0.{last}' }}\n");
        assert_eq!(load_text(&format!("{SMALL}{guest}")).is_ok(), right, "10.20.0.{last}");
    }
}

#[test]
fn everything_wrong_is_found_at_once_in_the_files_order() {
    let text = format!(
        "{}[guests.a]\nimage = 'web.toml'\nmemory = '1 MiB'\nforward = ['lan:x/tcp', 'wan:1/tcp']\nafter = ['b', 'a']\n",
        SMALL.replace("\"1\"", "1").replace("/29", "/31")
    );
    let found = load_text(&text).unwrap_err();
    let marked: Vec<&str> = found.iter().map(|wrong| &text[wrong.place.span.clone()]).collect();
    assert_eq!(marked, ["1", "\"10.20.0.0/31\"", "'1 MiB'", "x", "wan", "'b'", "'a'"]);
    assert!(found.iter().all(|wrong| wrong.hint.is_some()));
}

#[test]
fn a_place_counts_lines_and_characters_from_one() {
    let text = "# é\n[rack]\nname = 'ä' # ö\nversion = '1'\nbase = 'debian:trixie'\n'ü' = 1\n";
    let found = load_text(text).unwrap_err();
    let places: Vec<_> = found.iter().map(|wrong| wrong.place.line_column()).collect();
    assert_eq!(places, [(3, 8), (6, 1)]);
}

fn blob(label: &str) -> Blob {
    Blob { digest: VerityDigest([0; 32]), size: 4096, label: label.to_owned() }
}

fn built(rack: &Rack) -> BTreeMap<String, manifest::Image> {
    let image = manifest::Image {
        layers: vec![blob("base")],
        kernel: blob("kernel"),
        initrd: blob("initrd"),
        cmdline: String::new(),
        init: vec!["/sbin/init".to_owned()],
        process: None,
        secrets: Vec::new(),
        disk: None,
    };
    rack.images.keys().map(|name| (name.clone(), image.clone())).collect()
}

#[test]
fn a_manifest_has_the_guests_in_starting_order_with_macs_of_their_own() {
    let rack = load(&project().join("recipes/lab.toml")).unwrap();
    let manifest = manifest(&rack, built(&rack), guid::derive(&[b"data"])).unwrap();
    let names: Vec<&str> = manifest.guests.iter().map(|guest| guest.name.as_str()).collect();
    assert_eq!(names, ["db", "dns", "files", "mail", "web"]);
    let interfaces = || manifest.guests.iter().flat_map(|guest| &guest.interfaces);
    let macs: BTreeSet<&str> = interfaces().map(|interface| interface.mac.as_str()).collect();
    assert_eq!(macs.len(), interfaces().count(), "each is another");
    for mac in macs {
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!((bytes.len(), bytes[0] & 3), (6, 2), "{mac} must be local and for one station");
    }
    let manifest::Network::Private { gateway, prefix, .. } = manifest.networks["servers"] else { panic!() };
    assert_eq!((gateway, prefix), (Ipv4Addr::new(10, 20, 0, 1), 24));
    let text = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<manifest::Manifest>(&text).unwrap(), manifest);
}

#[test]
fn a_manifest_without_one_of_its_images_is_refused() {
    let rack = load(&project().join("recipes/lab.toml")).unwrap();
    let mut images = built(&rack);
    images.remove("web");
    let error = manifest(&rack, images, guid::derive(&[b"data"])).unwrap_err();
    assert_eq!(error, GenerationError::NoImage { guest: "web".to_owned(), image: "web".to_owned() });
}

/// A rack with two guests that share one image, with this template in a file beside its recipe.
fn load_template(template: &str) -> (tempfile::TempDir, Result<Rack, Vec<Diagnostic>>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("motd.j2"), template).unwrap();
    let image = "[vars]\nport = 80\n[[files]]\npath = '/etc/motd'\nsource = 'motd.j2'\ntemplate = true\n";
    fs::write(folder.path().join("web.toml"), image).unwrap();
    let guest = |name: &str, address: &str| {
        format!("[guests.{name}]\nimage = 'web.toml'\nmemory = '64 MiB'\naddress = {{ {address} }}\n")
    };
    let (one, two) = (guest("web-1", "servers = '10.20.0.3'"), guest("web-2", "servers = '10.20.0.4', lan = 'dhcp'"));
    let vars = "[vars]\nport = 8080\nadmins = ['alice', 'bob']\nmail.host = 'mx'\n";
    let rack = load::parse(&folder.path().join("rack.toml"), format!("{SMALL}{one}{two}{vars}").into_bytes());
    (folder, rack)
}

#[test]
fn a_template_is_filled_in_with_what_the_recipes_say() {
    for (template, filled) in [
        ("no template\n", "no template\n"),
        ("{{ rack.name }} {{ rack.version }} {{ rack.domain }} {{ image.name }}", "lab 1 lab.internal web"),
        ("{{ networks.servers.subnet }} {{ networks.servers.gateway }}", "10.20.0.0/29 10.20.0.1"),
        ("{{ networks.servers.prefix }} {{ networks.servers.netmask }}", "29 255.255.255.248"),
        // The image's variable comes before the rack's.
        ("{{ vars.port }} {{ vars.mail.host }} {{ vars.admins | join(', ') }}", "80 mx alice, bob"),
        (
            "{% for name, guest in guests | items %}\n{{ name }} {{ guest.addresses.servers }} {{ guest.fqdn }}\n{% endfor %}\nend\n",
            "web-1 10.20.0.3 web-1.lab.internal\nweb-2 10.20.0.4 web-2.lab.internal\nend\n",
        ),
        ("{{ guests['web-1'].addresses.lan | default('none') }} {{ 'ä' }}", "none ä"),
        ("<{% if networks.lan.subnet is defined %}static{% else %}dhcp{% endif %}>", "<dhcp>"),
    ] {
        let (_folder, rack) = load_template(template);
        let rack = rack.unwrap_or_else(|wrong| panic!("{template}: {wrong:?}"));
        assert_eq!(rack.images["web"].files[0].content, Content::Inline(filled.to_owned()), "{template}");
    }
}

#[test]
fn what_a_template_names_and_nobody_knows_is_shown_in_the_template_itself() {
    for (template, place, marked, hint) in [
        ("a\n  {{ rack.nme }}", "motd.j2:2:6", "rack.nme", "did you mean `name`?"),
        ("ä {{ guests['web-3'].fqdn }}", "motd.j2:1:12", "", "did you mean `web-"),
        ("{{ guests.db.fqdn }}", "motd.j2:1:", "", "`web-1`, `web-2`"),
        ("{{ guest.name }}", "motd.j2:1:4", "guest", "made once for all the guests"),
        ("{{ guests['web-2'].addresses.lan }}", "motd.j2:1:", "", "`guests.web-2.addresses` can name `servers`"),
        ("{{ vars.nothing }}", "motd.j2:1:4", "vars.nothing", "`admins`"),
        ("x\n{% for a in b %}", "motd.j2:2:", "", "Jinja"),
        ("{{ rack.name | nofilter }}", "motd.j2:1:16", "nofilter", "Jinja"),
        ("{{ 'x' * 100000000 }}", "motd.j2:1:", "", "the most"),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "motd.j2:1:", "", "the most"),
    ] {
        let (_folder, rack) = load_template(template);
        let [wrong] = &rack.unwrap_err()[..] else { panic!("{template}") };
        let text = wrong.to_string();
        let Place { source, span } = &wrong.place;
        assert!(text.contains(place) && text.contains(hint), "{template}: {text}");
        assert!(source.text[span.clone()].starts_with(marked), "{template}: {text}");
    }
}

/// Steele, Lea, Flood: SplitMix64. The same damage in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        const PIECES: &[&[u8]] = &[
            b"[[",
            b"]",
            b"{",
            b"\"\"\"",
            b"\n",
            b".",
            b"=",
            b"'",
            b"\\u00e9",
            "ä".as_bytes(),
            b"-1",
            b"0x",
            b"[rack]\n",
        ];
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.splice(at..at, PIECES[self.below(PIECES.len())].iter().copied()).for_each(drop),
                2 => bytes.drain(at..(at + self.below(40)).min(bytes.len())).for_each(drop),
                3 => {
                    let piece: Vec<u8> = bytes[at..(at + self.below(80)).min(bytes.len())].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece).for_each(drop);
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
    }
}

#[test]
fn no_damage_to_a_recipe_makes_it_panic_and_every_place_lies_in_the_file() {
    let mut random = Random(2);
    let folder = tempfile::tempdir().unwrap();
    let recipes = project().join("recipes");
    let texts = ["lab.toml", "images/dns.toml", "../tests/recipes/images/settings.toml"];
    let texts = texts.map(|name| fs::read(recipes.join(name)).unwrap());
    for round in 0..3000 {
        let mut bytes = texts[round % 3].clone();
        random.damage(&mut bytes);
        let found = if round % 3 == 0 {
            load::parse(&recipes.join("lab.toml"), bytes).err()
        } else {
            fs::create_dir_all(folder.path().join("images")).unwrap();
            fs::write(folder.path().join("images/dns.toml"), bytes).unwrap();
            let rack = format!("{SMALL}[guests.dns]\nimage = 'images/dns.toml'\nmemory = '64 MiB'\n");
            load::parse(&folder.path().join("rack.toml"), rack.into_bytes()).err()
        };
        for wrong in found.into_iter().flatten() {
            let Place { source, span } = &wrong.place;
            assert!(span.start <= span.end && span.end <= source.text.len(), "round {round}: {wrong}");
            assert!(!wrong.to_string().contains('\u{1b}'), "round {round}");
        }
    }
}

#[test]
fn a_recipe_nested_without_end_is_refused() {
    for nested in
        ["[".repeat(100_000), "a.".repeat(100_000), format!("a = {}", "[".repeat(100_000)), "a={".repeat(100_000)]
    {
        assert!(load_text(&nested).is_err());
    }
}

#[test]
fn every_key_is_explained_in_the_documentation() {
    let docs = fs::read_to_string(project().join("docs/recipes.md")).unwrap();
    for key in shapes::ALL.iter().skip(1).flat_map(|shape| shape.keys) {
        let ways = ["| `{}` |", "### `[[{}]]`", "### `[{}.NAME]`", "### `[{}]`"].map(|way| way.replace("{}", key.name));
        let explained = ways.iter().any(|way| docs.contains(way));
        assert!(explained, "`{}` is not explained", key.name);
        assert!(docs.contains(key.example), "no example `{}`", key.example);
    }
}

#[test]
fn an_image_is_of_the_racks_base_unless_it_names_another_and_a_repository_is_of_one_base() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("web.toml"), "").unwrap();
    fs::write(folder.path().join("old.toml"), "base = 'debian:bookworm'").unwrap();
    let text = |repositories: &str| {
        format!(
            "{SMALL}[guests.a]\nimage = 'web.toml'\nmemory = '64 MiB'\n[guests.b]\nimage = 'old.toml'\nmemory = '64 MiB'\n\
             {repositories}"
        )
    };
    let load = |text: String| load::parse(&folder.path().join("rack.toml"), text.into_bytes()).unwrap();
    // What one base's repository names is nothing to the other's.
    let repositories = "[repositories.new]\nsuite = 'trixie-backports'\npackages = ['nginx']\n\
        [repositories.old]\nbase = 'debian:bookworm'\nsuite = 'bookworm-backports'\npackages = ['nginx']\n";
    let rack = load(text(repositories));
    let base_of = |image: &str| &*rack.base_of(&rack.images[image]).value;
    assert_eq!((base_of("web"), base_of("old")), ("debian:trixie", "debian:bookworm"));
    let of = |repository: &str| &*rack.repositories[repository].base;
    assert_eq!((of("new"), of("old")), ("debian:trixie", "debian:bookworm"));
    assert_eq!(rack.warnings, []);

    let rack = load(text("[repositories.sid]\nbase = 'debian:sid'\nsuite = 'sid'\n"));
    let [warning] = &rack.warnings[..] else { panic!("{:?}", rack.warnings) };
    assert_eq!(warning.message, "nothing comes from repository `sid`: no image is made of `debian:sid`");
}

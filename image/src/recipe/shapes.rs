//! The keys of every table of a recipe, each with an example: what messages hint at. What the keys mean stands in
//! `docs/recipes.md`; a test holds it to these tables.

use super::reader::{Key, Shape};

const fn required(name: &'static str, example: &'static str) -> Key {
    Key { name, required: true, example }
}

const fn optional(name: &'static str, example: &'static str) -> Key {
    Key { name, required: false, example }
}

/// A rack recipe.
pub const RECIPE: Shape = Shape {
    what: "a rack recipe",
    keys: &[
        required("rack", "[rack]"),
        optional("repositories", "[repositories.backports]"),
        optional("networks", "[networks.lan]"),
        optional("guests", "[guests.web]"),
        optional("vars", "[vars]"),
    ],
};

/// `[rack]`.
pub const RACK: Shape = Shape {
    what: "`[rack]`",
    keys: &[
        required("name", r#"name = "lab""#),
        required("version", r#"version = "2026.11.1""#),
        required("base", r#"base = "debian:trixie""#),
        optional("domain", r#"domain = "lab.internal""#),
    ],
};

/// `[repositories.NAME]`.
pub const REPOSITORY: Shape = Shape {
    what: "a repository",
    keys: &[
        optional("base", r#"base = "debian:bookworm""#),
        required("suite", r#"suite = "trixie-backports""#),
        optional("components", r#"components = ["main"]"#),
        optional("packages", r#"packages = ["nginx-light"]"#),
        optional("url", r#"url = "https://packages.example.org/debian""#),
        optional("key", r#"key = "keys/example.asc""#),
    ],
};

/// `[networks.NAME]` bridged to a NIC.
pub const UPLINK: Shape = Shape {
    what: "an uplink network",
    keys: &[
        required("uplink", r#"uplink = "auto""#),
        optional("address", r#"address = "dhcp""#),
        optional("gateway", r#"gateway = "192.168.1.1""#),
        optional("resolver", r#"resolver = "192.168.1.1""#),
    ],
};

/// `[networks.NAME]` of the rack's own.
pub const PRIVATE: Shape = Shape {
    what: "a private network",
    keys: &[required("subnet", r#"subnet = "10.20.0.0/24""#), optional("nat", r#"nat = "lan""#)],
};

/// `[guests.NAME]`.
pub const GUEST: Shape = Shape {
    what: "a guest",
    keys: &[
        required("image", r#"image = "images/web.toml""#),
        optional("vcpus", "vcpus = 1"),
        required("memory", r#"memory = "256 MiB""#),
        optional("address", r#"address = { servers = "10.20.0.80" }"#),
        optional("forward", r#"forward = ["lan:8080/tcp -> 80"]"#),
        optional("volumes", r#"volumes.zones = { mount = "/var/lib/bind", size = "256 MiB" }"#),
        optional("disk", r#"disk = "8 GiB""#),
        optional("health", r#"health = { http = "http://:80/" }"#),
        optional("after", r#"after = ["dns"]"#),
    ],
};

/// One of a guest's `volumes`.
pub const VOLUME: Shape = Shape {
    what: "a volume",
    keys: &[required("mount", r#"mount = "/var/lib/bind""#), required("size", r#"size = "256 MiB""#)],
};

/// A guest's `health`.
pub const HEALTH: Shape = Shape {
    what: "a health check",
    keys: &[
        optional("dns", r#"dns = "www.lab.internal""#),
        optional("http", r#"http = "http://:80/""#),
        optional("tcp", "tcp = 25"),
    ],
};

/// An image recipe.
pub const IMAGE: Shape = Shape {
    what: "an image recipe",
    keys: &[
        optional("base", r#"base = "debian:bookworm""#),
        optional("packages", r#"packages = ["nginx-light"]"#),
        optional("services", r#"services = ["nginx"]"#),
        optional("files", "[[files]]"),
        optional("users", "[users.alice]"),
        optional("groups", "[groups.editors]"),
        optional("vars", "[vars]"),
        optional("secrets", "[secrets.dkim]"),
        optional("timezone", r#"timezone = "Europe/Berlin""#),
        optional("locale", r#"locale = "de_DE.UTF-8""#),
        optional("commands", r#"commands = ["a2enmod rewrite"]"#),
        optional("cmdline", r#"cmdline = ["mitigations=off"]"#),
        optional("compress", r#"compress = "zstd""#),
        optional("from", r#"from = { oci = "app.tar" }"#),
        optional("command", r#"command = ["/usr/bin/server", "--port", "80"]"#),
        optional("env", r#"env = { MODE = "production" }"#),
        optional("workdir", r#"workdir = "/srv""#),
        optional("user", r#"user = "www-data""#),
    ],
};

/// `from` of an image recipe.
pub const FROM: Shape = Shape {
    what: "`from`",
    keys: &[
        optional("rootfs", r#"rootfs = "alpine.tar.gz""#),
        optional("oci", r#"oci = "app.tar""#),
        optional("registry", r#"registry = "registry.example.org/team/app:1.2""#),
        optional("disk", r#"disk = "server.qcow2""#),
        optional("kernel", r#"kernel = "vmlinuz""#),
        optional("initrd", r#"initrd = "initrd.img""#),
    ],
};

/// `[[files]]` of an image recipe.
pub const FILE: Shape = Shape {
    what: "a file",
    keys: &[
        required("path", r#"path = "/var/www/html/index.html""#),
        optional("source", r#"source = "web/index.html""#),
        optional("content", r#"content = "hello""#),
        optional("template", "template = true"),
        optional("mode", "mode = 0o644"),
        optional("owner", r#"owner = "www-data""#),
        optional("group", r#"group = "www-data""#),
    ],
};

/// `[users.NAME]` of an image recipe.
pub const USER: Shape = Shape {
    what: "a user",
    keys: &[
        optional("uid", "uid = 1000"),
        optional("group", r#"group = "users""#),
        optional("groups", r#"groups = ["editors"]"#),
        optional("home", r#"home = "/home/alice""#),
        optional("shell", r#"shell = "/bin/bash""#),
        optional("comment", r#"comment = "Alice""#),
        optional("system", "system = true"),
        optional("authorized_keys", r#"authorized_keys = ["ssh-ed25519 AAAAC3Nz... alice@laptop"]"#),
    ],
};

/// `[groups.NAME]` of an image recipe.
pub const GROUP: Shape =
    Shape { what: "a group", keys: &[optional("gid", "gid = 2000"), optional("system", "system = true")] };

/// `[secrets.NAME]` of an image recipe.
pub const SECRET: Shape = Shape {
    what: "a secret",
    keys: &[
        optional("path", r#"path = "/run/secrets/dkim""#),
        optional("mode", "mode = 0o400"),
        optional("owner", r#"owner = "opendkim""#),
        optional("group", r#"group = "opendkim""#),
    ],
};

/// All of them.
#[cfg(test)]
pub const ALL: &[&Shape] = &[
    &RECIPE,
    &RACK,
    &REPOSITORY,
    &UPLINK,
    &PRIVATE,
    &GUEST,
    &VOLUME,
    &HEALTH,
    &IMAGE,
    &FROM,
    &FILE,
    &USER,
    &GROUP,
    &SECRET,
];

//! Generators: what packages draw at random when they are installed. An image is the same for everybody, so nothing
//! random may be in it: here stands what is kept from running at build time and what a guest runs instead, when it
//! first boots.

use std::{io, path::Path};

use super::tree::Tree;

/// One thing that is drawn.
#[derive(Debug)]
pub struct Generator {
    /// Short name, part of the unit's.
    pub name: &'static str,
    /// The package whose scripts would draw it.
    pub package: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// The programs that do nothing while packages are configured.
    pub masked: &'static [&'static str],
    /// What the guest looks for: if it is there, nothing is drawn.
    pub creates: &'static str,
    /// Files that the scripts expect to have been drawn; they stand there empty while they run.
    pub expected: &'static [&'static str],
    /// What the guest runs.
    pub run: &'static str,
    /// The unit that needs it.
    pub before: &'static str,
}

/// PostgreSQL's of one version; each release of Debian has one. The cluster's configuration is the recipe's: all of
/// /etc/postgresql/17/main. initdb writes PG_VERSION first of all, so it works beside the cluster's place: a power cut
/// must not leave half of one there. One flush for all files, not one for each.
macro_rules! postgresql {
    ($version:literal) => {
        Generator {
            name: "postgresql-cluster",
            package: concat!("postgresql-", $version),
            what: "a database cluster, whose identity and files are its own",
            masked: &["/usr/bin/pg_createcluster"],
            creates: concat!("/var/lib/postgresql/", $version, "/main"),
            expected: &[],
            run: concat!(
                "/bin/sh -ec 'cd /var/lib/postgresql; rm -rf ",
                $version,
                "/new; runuser -u postgres -- /usr/lib/postgresql/",
                $version,
                "/bin/initdb --encoding=UTF8 --locale=C.UTF-8 --auth-local=peer --auth-host=scram-sha-256 --data-checksums \
                 --no-sync --no-instructions ",
                $version,
                "/new; sync --file-system ",
                $version,
                "/new; mv ",
                $version,
                "/new ",
                $version,
                "/main'"
            ),
            before: concat!("postgresql@", $version, "-main.service"),
        }
    };
}

/// All of them.
pub const GENERATORS: &[Generator] = &[
    Generator {
        name: "rndc-key",
        package: "bind9",
        what: "the key with which rndc controls named",
        masked: &["/usr/sbin/rndc-confgen"],
        creates: "/etc/bind/rndc.key",
        expected: &["/etc/bind/rndc.key"],
        run: "/usr/sbin/rndc-confgen -a -u bind",
        before: "named.service",
    },
    // Berkeley DB gives each file a number of its own, made of inode, time and process.
    Generator {
        name: "postfix-aliases",
        package: "postfix",
        what: "the database of mail aliases",
        masked: &["/usr/sbin/postalias"],
        creates: "/etc/aliases.db",
        expected: &[],
        run: "/usr/bin/newaliases",
        before: "postfix.service",
    },
    postgresql!("15"),
    postgresql!("17"),
    postgresql!("18"),
    Generator {
        name: "ssh-host-keys",
        package: "openssh-server",
        what: "the host keys of the SSH server",
        masked: &["/usr/bin/ssh-keygen"],
        creates: "/etc/ssh/ssh_host_ed25519_key",
        expected: &[],
        run: "/usr/bin/ssh-keygen -A",
        before: "ssh.service",
    },
    Generator {
        name: "ssl-cert",
        package: "ssl-cert",
        what: "the self-signed certificate that services start with",
        masked: &["/usr/sbin/make-ssl-cert"],
        creates: "/etc/ssl/private/ssl-cert-snakeoil.key",
        // dovecot-core links to them only if they are there.
        expected: &["/etc/ssl/certs/ssl-cert-snakeoil.pem", "/etc/ssl/private/ssl-cert-snakeoil.key"],
        run: "/usr/sbin/make-ssl-cert generate-default-snakeoil",
        before: "basic.target",
    },
];

/// Those of these packages.
pub fn of<'a>(packages: impl Iterator<Item = &'a str> + Clone) -> Vec<&'static Generator> {
    GENERATORS.iter().filter(|generator| packages.clone().any(|package| package == generator.package)).collect()
}

impl Generator {
    /// Before packages are configured; nothing to do until its own one is unpacked.
    pub fn suppress(&self, tree: &Tree) -> io::Result<()> {
        let unpacked = self
            .masked
            .iter()
            .try_fold(false, |any, path| Ok::<_, io::Error>(any || tree.is_file(Path::new(path))?))?;
        if !unpacked {
            return Ok(());
        }
        self.expected.iter().try_for_each(|path| tree.write(Path::new(path), b"", 0o600))
    }

    /// After it: nothing of it stays, and the guest draws it before it is needed.
    pub fn defer(&self, tree: &Tree) -> io::Result<()> {
        self.expected.iter().try_for_each(|path| tree.remove(Path::new(path)))?;
        let unit = format!("rackstick-generate-{}.service", self.name);
        let units = Path::new("/usr/lib/systemd/system");
        tree.write(&units.join(&unit), self.unit().as_bytes(), 0o644)?;
        tree.symlink(&Path::new("..").join(&unit), &units.join(format!("{}.requires", self.before)).join(&unit))
    }

    fn unit(&self) -> String {
        let Self { what, creates, run, before, .. } = self;
        format!(
            "# Drawn by each guest for itself: images hold nothing random.\n\
             [Unit]\n\
             Description=Draw {what}\n\
             DefaultDependencies=no\n\
             ConditionPathExists=!{creates}\n\
             RequiresMountsFor={creates}\n\
             After=sysinit.target\n\
             Before={before} shutdown.target\n\
             Conflicts=shutdown.target\n\
             \n\
             [Service]\n\
             Type=oneshot\n\
             RemainAfterExit=yes\n\
             ExecStart={run}\n"
        )
    }
}

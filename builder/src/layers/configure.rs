//! Runs the maintainer scripts, by the image's own dpkg: it knows the order, the triggers and the conffiles. Follows
//! Debian Policy 6 and dpkg(1).

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use rackstick_image::{full, recipe};

use super::{
    database,
    deb::Control,
    generators::Generator,
    stage::{
        program::{Program, STATUS_FD},
        protocol::{Failure, Marked, Mistakes},
    },
    tree::Tree,
};

/// Refuses to start services, which invoke-rc.d and deb-systemd-invoke ask before each one.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// The resolver's configuration (resolv.conf(5)), empty: postfix takes a machine without the file for one of the domain
/// `UNKNOWN`. It is cleaned away with the rest.
const RESOLVER: &str = "/etc/resolv.conf";
/// What has to be configured before everything else on an empty system: users and groups, and what stands on them.
const FIRST: [&str; 2] = ["base-passwd", "base-files"];

/// What `systemctl is-enabled` says of units that are started (systemctl(1), is-enabled).
const STARTED: [&str; 4] = ["enabled", "enabled-runtime", "alias", "indirect"];
/// What it says of units that enabling does not start, though it does not call that a failure.
const NEVER_STARTED: [&str; 3] = ["static", "generated", "transient"];

/// How many lines of the end of a command's output an error shows.
const LINES_SHOWN: usize = 20;

/// Where units are looked for (systemd.unit(5), "Unit File Load Path").
const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];

/// A tree whose packages get configured.
pub struct Configure<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// The same as a path of this process.
    pub root: &'a Path,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: i64,
    /// The library that gives programs another clock, if they shall have one.
    pub clock: Option<&'a Path>,
    /// What the packages would draw at random.
    pub generators: Vec<&'static Generator>,
    /// What is told about progress.
    pub step: &'a dyn Fn(String),
}

impl Configure<'_> {
    /// Runs the preinst scripts of `packages`.
    pub fn preinst<'a>(&self, packages: impl Iterator<Item = &'a Control>) -> Result<(), Failure> {
        let mut with: Vec<&Control> = packages.filter(|control| control.members.contains_key("preinst")).collect();
        with.sort_by_key(|control| {
            (FIRST.iter().position(|first| *first == control.package).unwrap_or(FIRST.len()), &control.package)
        });
        for control in with {
            database::start_install(self.tree, control).map_err(failed(database::INSTALLING))?;
            let script = format!("{}/preinst", database::INSTALLING);
            let environment = [
                ("DPKG_MAINTSCRIPT_NAME", "preinst"),
                ("DPKG_MAINTSCRIPT_PACKAGE", &control.package),
                ("DPKG_MAINTSCRIPT_ARCH", &control.architecture),
                ("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1"),
                ("DPKG_ADMINDIR", database::ADMIN),
                ("DPKG_ROOT", ""),
            ];
            let what = format!("the preinst script of package {}", control.package);
            self.run(&what, &[&script, "install"], &environment)?;
            database::end_install(self.tree).map_err(failed(database::INSTALLING))?;
        }
        Ok(())
    }

    /// Configures `named` packages, or all that are unpacked (`-a`).
    pub fn configure(&self, named: &[&str]) -> Result<(), Failure> {
        let policy = Path::new(POLICY);
        self.tree.write(policy, b"#!/bin/sh\nexit 101\n", 0o755).map_err(failed(POLICY))?;
        if self.tree.stat(Path::new(RESOLVER)).map_err(failed(RESOLVER))?.is_none() {
            self.tree.write(Path::new(RESOLVER), b"", 0o644).map_err(failed(RESOLVER))?;
        }
        for generator in &self.generators {
            generator.suppress(self.tree).map_err(failed(generator.creates))?;
        }
        self.dpkg(&[], named)?;
        self.tree.remove(policy).map_err(failed(POLICY))
    }

    /// Configures what everything else on an empty system stands on; of `packages` those that are there.
    pub fn configure_first<'a>(&self, packages: impl Iterator<Item = &'a Control> + Clone) -> Result<(), Failure> {
        let is_there = |first: &&str| packages.clone().any(|control| control.package == *first);
        let named: Vec<&str> = FIRST.into_iter().filter(is_there).collect();
        if named.is_empty() { Ok(()) } else { self.dpkg(&["--force-depends"], &named) }
    }

    /// Once all is configured: leaves to the guest what was kept from being drawn.
    pub fn defer_generators(&self) -> Result<(), Failure> {
        self.generators.iter().try_for_each(|generator| generator.defer(self.tree).map_err(failed(generator.creates)))
    }

    /// Enables units as an administrator would.
    pub fn enable(&self, services: &[Marked<String>]) -> Result<(), Failure> {
        let names: Vec<&str> = services.iter().map(|service| service.value.as_str()).collect();
        let ask = |verb: &str| {
            (self.step)(format!("systemctl {verb}"));
            let ended = self.program(&[&["systemctl", verb, "--"], &names[..]].concat());
            ended.run(self.epoch, &[], &mut |_| ()).map_err(failed("systemctl"))
        };
        if services.is_empty() {
            return Ok(());
        }
        // All at once is quicker; one by one, if need be, tells which is at fault.
        if ask("enable")?.success() {
            let said = ask("is-enabled")?.output;
            if said.lines().count() == services.len() && said.lines().all(|state| STARTED.contains(&state)) {
                return Ok(());
            }
        }
        let mut mistakes = Mistakes::default();
        for service in services {
            mistakes.note(self.enable_one(service))?;
        }
        mistakes.tell()
    }

    fn enable_one(&self, service: &Marked<String>) -> Result<(), Failure> {
        let Marked { value: service, mark } = service;
        let enabled = self.run(&format!("systemctl enable {service}"), &["systemctl", "enable", "--", service], &[]);
        if enabled.is_err() {
            let units = self.units().map_err(failed("the units"))?;
            if !units.contains(&template(service)) {
                let hint = match recipe::closest(service, units.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "packages bring units, and so does a file in /etc/systemd/system".to_owned(),
                };
                return Err(Failure::mistake(*mark, format!("the image has no unit `{service}`"), hint));
            }
        }
        enabled?;
        // Of a unit that can't be enabled, because nothing would ever start it so, systemctl only says that.
        let what = format!("systemctl is-enabled {service}");
        let ended = self.program(&["systemctl", "is-enabled", "--", service]).run(self.epoch, &[], &mut |_| ());
        let ended = ended.map_err(failed(&what))?;
        if ended.success() && !NEVER_STARTED.contains(&ended.output.as_str()) {
            return Ok(());
        }
        Err(Failure::mistake(
            *mark,
            format!("unit `{service}` can't be enabled, it is {}", ended.output),
            "it has no [Install] section, so something else starts it or nothing does: take it out of `services`, or give it \
             such a section",
        ))
    }

    /// The names of all units that are there.
    fn units(&self) -> io::Result<BTreeSet<String>> {
        let mut units = BTreeSet::new();
        for folder in UNITS {
            let entries = self.tree.entries(Path::new(folder))?;
            units.extend(entries.into_iter().filter_map(|(name, _)| name.into_string().ok()));
        }
        Ok(units)
    }

    /// Runs a command of the recipe.
    pub fn command(&self, command: &Marked<Vec<String>>) -> Result<(), Failure> {
        let Marked { value: arguments, mark } = command;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        (self.step)("a command of the recipe".to_owned());
        let ended = self.program(&arguments).run(self.epoch, &[], &mut |_| ());
        let ended = ended.map_err(failed("a command of the recipe"))?;
        if ended.success() {
            return Ok(());
        }
        let lines: Vec<&str> = ended.output.lines().collect();
        let hint = if lines.is_empty() {
            "it printed nothing; `set -x` at a shell's beginning shows what it does".to_owned()
        } else {
            format!("it printed at its end:\n{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"))
        };
        Err(Failure::mistake(*mark, format!("the command failed ({})", ended.how()), hint))
    }

    /// Indexes the modules of a kernel.
    pub fn depmod(&self, version: &str) -> Result<(), Failure> {
        self.run(&format!("depmod {version}"), &["depmod", version], &[])
    }

    fn dpkg(&self, options: &[&str], packages: &[&str]) -> Result<(), Failure> {
        let fixed = [
            "dpkg",
            "--status-fd",
            STATUS_FD,
            "--log=/dev/null",
            "--abort-after=1",
            "--force-confnew",
            "--force-confmiss",
            "--no-pager",
        ];
        let arguments = [&fixed[..], options, &["--configure"], packages].concat();
        let program = self.program(&arguments);
        let ended = program.run(self.epoch, &[], &mut |note| {
            if let Some(package) = note.strip_prefix("processing: ") {
                (self.step)(package.replace(": ", " "));
            }
        });
        let ended = ended.map_err(failed("dpkg"))?;
        if ended.success() {
            return Ok(());
        }
        // `status: <package>: error: ...` names the culprit; without it, the last package that dpkg began with.
        let culprit = ended.notes.lines().find_map(|line| {
            let rest = line.strip_prefix("status: ")?;
            let (package, rest) = rest.split_once(" : ").or_else(|| rest.split_once(": "))?;
            rest.trim_start().starts_with("error").then(|| package.to_owned())
        });
        let last = || {
            ended
                .notes
                .lines()
                .rev()
                .find_map(|line| Some(line.strip_prefix("processing: ")?.rsplit(": ").next()?.to_owned()))
        };
        let what = match culprit.or_else(last) {
            Some(package) => format!("the scripts of package {package}"),
            None => "dpkg --configure".to_owned(),
        };
        Err(Failure::Script { what, how: ended.how(), output: ended.output })
    }

    /// Runs a program that has to succeed.
    pub fn run(&self, what: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<(), Failure> {
        (self.step)(what.to_owned());
        let ended = self.program(arguments).run(self.epoch, environment, &mut |_| ()).map_err(failed(what))?;
        if ended.success() {
            return Ok(());
        }
        Err(Failure::Script { what: what.to_owned(), how: ended.how(), output: ended.output })
    }

    fn program(&self, arguments: &[&str]) -> Program {
        Program {
            root: self.root.to_owned(),
            masked: self.generators.iter().flat_map(|generator| generator.masked).map(PathBuf::from).collect(),
            clock: self.clock.map(Path::to_owned),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        }
    }
}

/// The file of a unit: `getty@tty1.service` is made from `getty@.service`.
fn template(unit: &str) -> String {
    match (unit.split_once('@'), unit.rsplit_once('.')) {
        (Some((name, _)), Some((_, suffix))) => format!("{name}@.{suffix}"),
        _ => unit.to_owned(),
    }
}

/// An error of the system, said of `what`.
pub fn failed(what: &str) -> impl Fn(io::Error) -> Failure + use<> {
    let what = what.to_owned();
    move |error| {
        if full::is_behind(&error) {
            Failure::NoSpace(what.clone())
        } else {
            Failure::Other(format!("{what}: {error}"))
        }
    }
}

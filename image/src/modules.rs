//! The index of kernel modules: which file a module is, what it needs, and which devices it drives. Computed by
//! the builder from the modules' own `.modinfo`, shipped as text in the initrd at [`path`], read by whoever loads
//! modules.
//!
//! The rules are those of modprobe(8) and modprobe.d(5): `-` and `_` are the same, aliases are fnmatch(3) patterns,
//! soft dependencies are loaded if they are there.

mod info;
mod pattern;
mod text;
pub mod wanted;

use std::{borrow::Cow, collections::BTreeSet};

pub use info::{InfoError, ModuleInfo, name_of_path};
pub use pattern::matches;
pub use text::ParseError;

/// Where an initrd holds the modules of the kernel `release` (`uname -r`); the paths in the index are below it.
pub fn directory(release: &str) -> String {
    format!("/lib/modules/{release}")
}

/// Where an initrd holds the index for the kernel `release`.
pub fn path(release: &str) -> String {
    format!("{}/rackstick.index", directory(release))
}

/// Where an initrd holds the firmware that modules ask for as `name`: compressed, which the kernel undoes.
pub fn firmware_path(name: &str) -> String {
    format!("/lib/firmware/{name}.xz")
}

/// A module as it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Name with underscores, as `/sys/module` has it.
    pub name: String,
    /// File below [`directory`], as `kernel/fs/erofs/erofs.ko.xz`.
    pub path: String,
    /// Modules whose symbols it uses: they must be loaded before it.
    pub depends: Vec<String>,
    /// Modules or aliases to load before it where they exist.
    pub soft_before: Vec<String>,
    /// Modules or aliases to load after it where they exist.
    pub soft_after: Vec<String>,
    /// Modules or aliases that it may ask for by itself later: never loaded for it, but they belong in the same initrd.
    pub weak: Vec<String>,
    /// Firmware it may ask for, below `/lib/firmware`; may hold fnmatch(3) patterns.
    pub firmware: Vec<String>,
}

/// What an alias leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// Built into the kernel: nothing to load.
    Builtin,
    /// Position in `Index::modules`.
    Module(u32),
}

/// One alias: a pattern that stands in `Index::patterns` at `start..end`, the first `literal` bytes of it without
/// meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alias {
    start: u32,
    end: u32,
    literal: u32,
    target: Target,
}

/// The index of one kernel's modules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// Sorted by name.
    modules: Vec<Module>,
    /// Names of what is built in, sorted.
    builtin: Vec<String>,
    /// All patterns, one after the other: one allocation instead of one for each of some 20,000.
    patterns: String,
    /// Sorted by the literal part of the pattern, so that those that can match a string are found by bisection.
    aliases: Vec<Alias>,
}

/// What can't be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Asked for by name.
    #[error(
        "no kernel module, built-in feature or alias is called `{name}`; add the kernel package that holds it, or drop it from the list"
    )]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// Needed by another module.
    #[error(
        "kernel module `{module}` needs `{dependency}`, which the index does not hold; build the index from the whole kernel package"
    )]
    MissingDependency {
        /// The module that needs it.
        module: String,
        /// What is not there.
        dependency: String,
    },
}

/// The name as the kernel writes it: `-` becomes `_`.
pub fn normalise(name: &str) -> Cow<'_, str> {
    if name.contains('-') { Cow::Owned(name.replace('-', "_")) } else { Cow::Borrowed(name) }
}

impl Index {
    /// Makes the index of `modules`; `builtin_modinfo` is the kernel package's `modules.builtin.modinfo`, `builtin` its
    /// `modules.builtin`. The order of `modules` does not matter; if two have the same name the one whose path sorts
    /// first stays.
    pub fn new(modules: Vec<ModuleInfo>, builtin: &str, builtin_modinfo: &[u8]) -> Self {
        let mut modules = modules;
        modules.sort_by(|a, b| (&a.module.name, &a.module.path).cmp(&(&b.module.name, &b.module.path)));
        modules.dedup_by(|later, first| later.module.name == first.module.name);

        let mut names: BTreeSet<String> = builtin.lines().filter_map(info::name_of_path).collect();
        let mut aliases: Vec<(String, Target)> = Vec::new();
        for (name, key, value) in info::builtin_entries(builtin_modinfo) {
            names.insert(normalise(name).into_owned());
            if key == "alias" {
                aliases.push((value.to_owned(), Target::Builtin));
            }
        }
        for (position, module) in (0u32..).zip(&modules) {
            aliases.extend(module.aliases.iter().map(|alias| (alias.clone(), Target::Module(position))));
        }
        Self::from_parts(modules.into_iter().map(|info| info.module).collect(), names.into_iter().collect(), aliases)
    }

    /// `modules` and `builtin` are sorted by name.
    fn from_parts(modules: Vec<Module>, builtin: Vec<String>, mut aliases: Vec<(String, Target)>) -> Self {
        let key = |pattern: &str| pattern::literal_len(pattern);
        aliases.sort_by(|(a, to_a), (b, to_b)| (&a[..key(a)], a, to_a).cmp(&(&b[..key(b)], b, to_b)));
        aliases.dedup();
        let mut index = Index { modules, builtin, patterns: String::new(), aliases: Vec::with_capacity(aliases.len()) };
        for (pattern, target) in aliases {
            index.push_alias(&pattern, target);
        }
        index
    }

    fn push_alias(&mut self, pattern: &str, target: Target) {
        // Patterns come from files of a few megabytes: their length fits 32 bits, and `text::parse` refuses longer
        // ones.
        let start = self.patterns.len() as u32;
        self.patterns.push_str(pattern);
        let end = self.patterns.len() as u32;
        self.aliases.push(Alias { start, end, literal: pattern::literal_len(pattern) as u32, target });
    }

    fn pattern(&self, alias: &Alias) -> &str {
        &self.patterns[alias.start as usize..alias.end as usize]
    }

    fn literal(&self, alias: &Alias) -> &str {
        &self.patterns[alias.start as usize..(alias.start + alias.literal) as usize]
    }

    /// All modules, sorted by name.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// All aliases, each with the module that it leads to; none where that is built in.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, Option<&Module>)> {
        self.aliases.iter().map(|alias| {
            let module = match alias.target {
                Target::Builtin => None,
                Target::Module(position) => self.modules.get(position as usize),
            };
            (self.pattern(alias), module)
        })
    }

    /// The module of this name; `-` and `_` are the same.
    pub fn get(&self, name: &str) -> Option<&Module> {
        let name = normalise(name);
        let at = self.modules.binary_search_by(|module| module.name.as_str().cmp(&name)).ok()?;
        Some(&self.modules[at])
    }

    /// Whether the kernel has this built in.
    pub fn is_builtin(&self, name: &str) -> bool {
        let name = normalise(name);
        self.builtin.binary_search_by(|known| known.as_str().cmp(&name)).is_ok()
    }

    fn targets(&self, alias: &str) -> impl Iterator<Item = Target> + '_ {
        // An alias that matches has a literal part that is a prefix of the string: look each prefix up.
        let alias = alias.to_owned();
        let ends: Vec<usize> = (0..=alias.len()).filter(|end| alias.is_char_boundary(*end)).collect();
        ends.into_iter().flat_map(move |end| {
            let prefix = &alias[..end];
            let first = self.aliases.partition_point(|entry| self.literal(entry) < prefix);
            let found: Vec<Target> = self.aliases[first..]
                .iter()
                .take_while(|entry| self.literal(entry) == prefix)
                .filter(|entry| pattern::matches(self.pattern(entry), &alias))
                .map(|entry| entry.target)
                .collect();
            found
        })
    }

    /// The modules with an alias that matches `alias` (a device's modalias, `fs-erofs`, `nft-expr-counter`...), by
    /// name. Empty where nothing drives it or what drives it is built in.
    pub fn by_alias(&self, alias: &str) -> Vec<&Module> {
        let positions: BTreeSet<u32> = self
            .targets(alias)
            .filter_map(|target| match target {
                Target::Module(position) => Some(position),
                Target::Builtin => None,
            })
            .collect();
        positions.into_iter().filter_map(|position| self.modules.get(position as usize)).collect()
    }

    /// What `name` means, in modprobe(8)'s order: a module, else an alias of modules, else something built in (nothing
    /// to load).
    ///
    /// # Errors
    /// [`ResolveError::Unknown`] if it is none of the three.
    pub fn resolve(&self, name: &str) -> Result<Vec<&Module>, ResolveError> {
        if let Some(module) = self.get(name) {
            return Ok(vec![module]);
        }
        let found = self.by_alias(name);
        if found.is_empty() && !self.is_builtin(name) && self.targets(name).next().is_none() {
            return Err(ResolveError::Unknown { name: name.to_owned() });
        }
        Ok(found)
    }

    /// Everything to load for `names` (modules or aliases), in an order in which each comes after what it needs.
    ///
    /// # Errors
    /// [`ResolveError`] for a name or a hard dependency that is not there; soft dependencies that are not there are
    /// left out.
    pub fn closure<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<&Module>, ResolveError> {
        self.walk(names, false)
    }

    /// The part of the index that an initrd needs to load `wanted`: their closure, and what they may ask for later.
    /// Names that are built in stay known.
    ///
    /// # Errors
    /// As [`Index::closure`].
    pub fn select<S: AsRef<str>>(&self, wanted: &[S]) -> Result<Index, ResolveError> {
        let names: BTreeSet<&str> = self.walk(wanted, true)?.into_iter().map(|module| module.name.as_str()).collect();
        let mut moved = vec![None; self.modules.len()];
        let mut modules = Vec::with_capacity(names.len());
        for (old, module) in self.modules.iter().enumerate() {
            if names.contains(module.name.as_str()) {
                moved[old] = Some(modules.len() as u32);
                modules.push(module.clone());
            }
        }
        let mut index = Index { modules, builtin: self.builtin.clone(), patterns: String::new(), aliases: Vec::new() };
        for alias in &self.aliases {
            let target = match alias.target {
                Target::Builtin => Some(Target::Builtin),
                Target::Module(old) => moved.get(old as usize).copied().flatten().map(Target::Module),
            };
            if let Some(target) = target {
                index.push_alias(self.pattern(alias), target);
            }
        }
        Ok(index)
    }

    fn walk<S: AsRef<str>>(&self, names: &[S], with_weak: bool) -> Result<Vec<&Module>, ResolveError> {
        let mut walk = Walk { index: self, with_weak, seen: BTreeSet::new(), order: Vec::new() };
        for name in names {
            for module in self.resolve(name.as_ref())? {
                walk.visit(module)?;
            }
        }
        Ok(walk.order)
    }
}

/// A depth-first walk along dependencies. As deep as the longest chain: some ten modules in a kernel, and never
/// deeper than there are modules, as each is entered once.
struct Walk<'a> {
    index: &'a Index,
    with_weak: bool,
    seen: BTreeSet<&'a str>,
    order: Vec<&'a Module>,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, module: &'a Module) -> Result<(), ResolveError> {
        if !self.seen.insert(&module.name) {
            return Ok(());
        }
        self.visit_soft(&module.soft_before)?;
        for name in &module.depends {
            match self.index.get(name) {
                Some(dependency) => self.visit(dependency)?,
                None if self.index.is_builtin(name) => {}
                None => {
                    return Err(ResolveError::MissingDependency {
                        module: module.name.clone(),
                        dependency: name.clone(),
                    });
                }
            }
        }
        self.order.push(module);
        self.visit_soft(&module.soft_after)?;
        if self.with_weak {
            self.visit_soft(&module.weak)?;
        }
        Ok(())
    }

    fn visit_soft(&mut self, names: &'a [String]) -> Result<(), ResolveError> {
        for name in names {
            match self.index.resolve(name) {
                Ok(found) => found.into_iter().try_for_each(|module| self.visit(module))?,
                Err(ResolveError::Unknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

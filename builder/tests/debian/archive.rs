//! What the archive says of its packages, read from apt's own dump: just enough to tell needs with a choice from needs
//! without one. Bounds of versions are left out: of each package there is one version, and that they hold is apt's to
//! judge.

use std::collections::{BTreeMap, BTreeSet};

/// One package.
#[derive(Default)]
struct Package {
    /// `Pre-Depends` and `Depends`: each need by the names that satisfy it.
    needs: Vec<Vec<String>>,
    /// `Conflicts`.
    excludes: Vec<String>,
    /// `Priority`: 0 is `required`, larger is less.
    priority: usize,
}

/// From the highest.
const PRIORITIES: [&str; 5] = ["required", "important", "standard", "optional", "extra"];

/// All of them.
pub struct Archive {
    packages: BTreeMap<String, Package>,
    /// Who provides a name.
    providers: BTreeMap<String, BTreeSet<String>>,
    base: BTreeSet<String>,
}

impl Archive {
    /// Reads what `apt-cache dumpavail` prints.
    pub fn read(dump: &str) -> Self {
        let mut new = Self { packages: BTreeMap::new(), providers: BTreeMap::new(), base: BTreeSet::new() };
        for stanza in dump.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
            };
            let name = field("Package").to_owned();
            if name.is_empty() {
                continue;
            }
            for provided in names(field("Provides")).into_iter().flatten() {
                new.providers.entry(provided).or_default().insert(name.clone());
            }
            let needs = [names(field("Pre-Depends")), names(field("Depends"))].concat();
            let priority = PRIORITIES.iter().position(|name| *name == field("Priority")).unwrap_or(PRIORITIES.len());
            new.packages.insert(name, Package { needs, excludes: names(field("Conflicts")).concat(), priority });
        }
        new
    }

    /// Says which packages are installed.
    pub fn set_base(&mut self, names: &[String]) {
        self.base = names.iter().cloned().collect();
    }

    /// The names of all packages, sorted.
    pub fn packages(&self) -> impl Iterator<Item = &String> {
        self.packages.keys()
    }

    /// All pairs of which one names the other under `Conflicts`, sorted.
    pub fn excluding(&self) -> impl Iterator<Item = (&String, &String)> {
        let pairs = |(name, package)| {
            let package: &Package = package;
            package.excludes.iter().filter(|other| self.packages.contains_key(*other)).map(move |other| (name, other))
        };
        self.packages.iter().flat_map(pairs)
    }

    /// Who satisfies a need.
    fn candidates(&self, need: &[String]) -> BTreeSet<String> {
        let real = need.iter().filter(|name| self.packages.contains_key(*name)).cloned();
        let provided = need.iter().filter_map(|name| self.providers.get(name)).flatten().cloned();
        real.chain(provided).collect()
    }

    /// Of the providers of what no package is called, that of the highest priority and then the first by name.
    pub fn first_provider(&self, need: &[String]) -> Option<String> {
        if need.iter().any(|name| self.packages.contains_key(name)) {
            return None;
        }
        self.candidates(need).into_iter().min_by_key(|name| (self.packages[name].priority, name.clone()))
    }

    /// The base, and what `asked` needs without a choice.
    pub fn certain(&self, asked: &[String]) -> BTreeSet<String> {
        let mut certain = self.base.clone();
        let mut open = asked.to_vec();
        while let Some(name) = open.pop() {
            if certain.insert(name.clone()) {
                let needs = self.packages.get(&name).into_iter().flat_map(|package| &package.needs);
                let only = needs.map(|need| self.candidates(need)).filter(|candidates| candidates.len() == 1);
                open.extend(only.flatten());
            }
        }
        certain
    }

    /// Whether each package of `one` that is not in `both` follows from a need of `both`, or of the base, that others
    /// of `other` satisfy as well; of the need, and of those who do, `settled` must hold.
    pub fn follows(
        &self,
        both: &BTreeSet<String>,
        one: &BTreeSet<String>,
        other: &BTreeSet<String>,
        settled: &dyn Fn(&[String], &BTreeSet<String>) -> bool,
    ) -> bool {
        let mut left: BTreeSet<String> = one.difference(both).cloned().collect();
        let other: BTreeSet<String> = other.union(&self.base).cloned().collect();
        let mut open = Vec::new();
        for needy in both {
            for need in &self.packages[needy].needs {
                let candidates = self.candidates(need);
                let satisfied_by = candidates.intersection(&other).cloned().collect();
                if settled(need, &satisfied_by) {
                    open.extend(candidates);
                }
            }
        }
        while let Some(name) = open.pop() {
            if left.remove(&name) {
                open.extend(self.packages[&name].needs.iter().flat_map(|need| self.candidates(need)));
            }
        }
        left.is_empty()
    }
}

/// The names of a relation field, those of each alternative together.
fn names(field: &str) -> Vec<Vec<String>> {
    let name = |atom: &str| atom.trim().split([' ', ':', '(', '[']).next().unwrap_or_default().to_owned();
    let groups = field.split(',').filter(|group| !group.trim().is_empty());
    groups.map(|group| group.split('|').map(name).collect()).collect()
}

//! Which packages a set of names needs, as `apt-get install --no-install-recommends` would choose them for a system
//! that has only the given base: what is needed without a choice first, to a fixpoint; then the alternatives, in the
//! order in which they stand, each only if nothing chosen so far satisfies it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::{
    packages::{Catalogue, Id, PackagesError, Rank},
    relation::{Atom, Group},
};

/// How many wrong choices are taken back before giving up: stops an index made to keep us busy. Debian needs none.
const MAX_RETRIES: usize = 1000;
/// How many other names an unknown one is answered with.
const NEAREST: usize = 3;
/// What stands between a package and the one that it needs, where a chain is told.
pub const LINK: &str = " -> ";
/// How alike, from 0 to 1, a name must be to be offered.
const LIKENESS: f64 = 0.75;

/// Why a set can't be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No such package.
    #[error("there is no package `{name}`")]
    Unknown {
        /// The name asked for.
        name: String,
        /// Names that are much like it, the nearest first.
        nearest: Vec<String>,
    },
    /// A name that only others provide.
    #[error("`{name}` is not a package but something that packages provide")]
    Virtual {
        /// The name asked for.
        name: String,
        /// Who provides it.
        providers: Vec<String>,
    },
    /// Something needed does not exist.
    #[error("{chain} needs {relation}: {reason}")]
    Unsatisfiable {
        /// The name asked for.
        asked: String,
        /// From the name asked for to the package in need.
        chain: String,
        /// What it needs.
        relation: String,
        /// Why that can't be had.
        reason: String,
        /// Repositories beside the base that have it: repository, package and version.
        elsewhere: Vec<[String; 3]>,
    },
    /// Two packages that are both needed exclude each other.
    #[error("{one} conflicts with {relation}, but there is also {other}")]
    Conflict {
        /// The names asked for; the base's packages count as asked for.
        asked: [String; 2],
        /// From the name asked for to the one.
        one: String,
        /// What it conflicts with.
        relation: String,
        /// From the name asked for to the other.
        other: String,
    },
    /// An index is wrong.
    #[error(transparent)]
    Packages(#[from] PackagesError),
}

/// Why a package was chosen.
#[derive(Clone, Copy)]
enum Because {
    /// It was asked for, or is part of the base.
    Given,
    /// Another needs it; if there was a choice, it stood in this group.
    Needed { by: Id, choice: Option<usize> },
}

/// What must not be chosen again: the package in need, the number of its group, and the candidate.
type Rejected = HashSet<(Id, usize, Id)>;

/// Resolves a set: the packages that `wanted` needs beyond `base`. The result is sorted by name and does not repeat the
/// base.
pub fn resolve(catalogue: &Catalogue, base: &BTreeSet<Id>, wanted: &[Id]) -> Result<BTreeSet<Id>, ResolveError> {
    let mut rejected = Rejected::new();
    let mut first_error = None;
    loop {
        match Attempt::new(catalogue, base, &rejected)?.run(wanted)? {
            Ok(chosen) => return Ok(chosen.into_iter().filter(|id| !base.contains(id)).collect()),
            Err(Dead { error, choice }) => {
                let retry = rejected.len() < MAX_RETRIES && choice.is_some_and(|choice| rejected.insert(choice));
                if !retry {
                    return Err(first_error.unwrap_or(error));
                }
                first_error.get_or_insert(error);
            }
        }
    }
}

/// The package at the end of a chain, without its version.
pub fn last_of(chain: &str) -> String {
    let last = chain.rsplit(LINK).next().unwrap_or_default();
    last.split(' ').next().unwrap_or_default().to_owned()
}

/// The packages that every system must have.
pub fn essential(catalogue: &Catalogue) -> Vec<Id> {
    catalogue.iter().filter(|(_, package)| package.essential).map(|(id, _)| id).collect()
}

/// The package of a name that somebody asked for.
pub fn find(catalogue: &Catalogue, name: &str) -> Result<Id, ResolveError> {
    if let Some(id) = catalogue.find(name) {
        return Ok(id);
    }
    let mut providers: Vec<String> =
        catalogue.providers(name).iter().map(|(id, _)| catalogue.get(*id).name.to_owned()).collect();
    if !providers.is_empty() {
        providers.sort_unstable();
        return Err(ResolveError::Virtual { name: name.to_owned(), providers });
    }
    let known = catalogue.iter().map(|(_, package)| package.name);
    let nearest = nearest(name, known).into_iter().map(str::to_owned).collect();
    Err(ResolveError::Unknown { name: name.to_owned(), nearest })
}

/// The names that are much like this one, the nearest first.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let alike = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let mut alike: Vec<(f64, &str)> = alike.filter(|(likeness, _)| *likeness >= LIKENESS).collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    alike.into_iter().take(NEAREST).map(|(_, name)| name).collect()
}

/// The package to unpack for a name: a kernel's metapackage, which depends on nothing but one kernel of its own
/// version, stands for that kernel.
pub fn find_unpacked(catalogue: &Catalogue, name: &str) -> Result<Id, ResolveError> {
    let id = find(catalogue, name)?;
    let package = catalogue.get(id);
    let needs: Vec<Group> =
        package.depends.iter().map(|field| package.relation(field)).collect::<Result<Vec<_>, _>>()?.concat();
    if let [Group { atoms, .. }] = needs.as_slice()
        && let [Atom { name: kernel, bound: Some(bound) }] = atoms.as_slice()
        && name.starts_with(KERNEL)
        && kernel.starts_with(KERNEL)
        && bound.exactly() == Some(package.version)
    {
        return find(catalogue, kernel);
    }
    Ok(id)
}

/// How the names of kernels and of their metapackages begin.
pub const KERNEL: &str = crate::sets::KERNELS;

/// An attempt that failed, and the choice that led there, if there was one.
struct Dead {
    error: ResolveError,
    choice: Option<(Id, usize, Id)>,
}

/// One run, with some choices ruled out.
struct Attempt<'r, 'c, 'a> {
    catalogue: &'c Catalogue<'a>,
    rejected: &'r Rejected,
    chosen: BTreeMap<Id, Because>,
    /// Who of the chosen provides a name.
    provided: HashMap<&'a str, Vec<(Id, Option<&'a str>)>>,
    /// Who of the chosen excludes a name.
    excluded: HashMap<&'a str, Vec<(Id, Group<'a>)>>,
    queue: VecDeque<Id>,
}

type Step<T> = Result<Result<T, Dead>, PackagesError>;

impl<'r, 'c, 'a> Attempt<'r, 'c, 'a> {
    fn new(catalogue: &'c Catalogue<'a>, base: &BTreeSet<Id>, rejected: &'r Rejected) -> Result<Self, PackagesError> {
        let mut new = Self {
            catalogue,
            rejected,
            chosen: BTreeMap::new(),
            provided: HashMap::new(),
            excluded: HashMap::new(),
            queue: VecDeque::new(),
        };
        for id in base {
            new.record(*id, Because::Given)?;
        }
        Ok(new)
    }

    fn run(mut self, wanted: &[Id]) -> Step<Vec<Id>> {
        for id in wanted {
            if let Err(dead) = self.choose(*id, Because::Given)? {
                return Ok(Err(dead));
            }
        }
        let mut open: VecDeque<(Id, usize, Group<'a>)> = VecDeque::new();
        loop {
            if let Some(id) = self.queue.pop_front() {
                let package = self.catalogue.get(id);
                let fields = [package.relation(package.depends[0])?, package.relation(package.depends[1])?];
                for (number, group) in fields.into_iter().flatten().enumerate() {
                    match self.candidates(&group)?.as_slice() {
                        [] => return Ok(Err(self.unsatisfiable(id, &group))),
                        [only] => {
                            if let Err(dead) = self.choose(*only, Because::Needed { by: id, choice: None })? {
                                return Ok(Err(dead));
                            }
                        }
                        _ => open.push_back((id, number, group)),
                    }
                }
            } else if let Some((by, number, group)) = open.pop_front() {
                let candidates = self.candidates(&group)?;
                if candidates.iter().any(|id| self.chosen.contains_key(id)) {
                    continue;
                }
                let mut possible = Vec::new();
                for id in candidates {
                    if !self.rejected.contains(&(by, number, id)) && self.clash(id)?.is_none() {
                        possible.push(id);
                    }
                }
                let Some(first) = possible.first() else {
                    return Ok(Err(self.unsatisfiable(by, &group)));
                };
                if let Err(dead) = self.choose(*first, Because::Needed { by, choice: Some(number) })? {
                    return Ok(Err(dead));
                }
            } else {
                return Ok(Ok(self.chosen.into_keys().collect()));
            }
        }
    }

    /// Takes a package in, if nothing chosen excludes it.
    fn choose(&mut self, id: Id, because: Because) -> Step<()> {
        if self.chosen.contains_key(&id) {
            return Ok(Ok(()));
        }
        if let Some((one, relation, other)) = self.clash(id)? {
            // The newcomer is not recorded yet, but its chain is to be shown.
            self.chosen.insert(id, because);
            let choice = self.choice(id).or_else(|| self.choice(if one == id { other } else { one }));
            let error = ResolveError::Conflict {
                asked: [self.asked(one), self.asked(other)],
                one: self.chain(one),
                relation: relation.to_owned(),
                other: self.chain(other),
            };
            return Ok(Err(Dead { error, choice }));
        }
        self.record(id, because)?;
        self.queue.push_back(id);
        Ok(Ok(()))
    }

    fn record(&mut self, id: Id, because: Because) -> Result<(), PackagesError> {
        self.chosen.insert(id, because);
        let package = self.catalogue.get(id);
        for (name, version) in package.provided()? {
            self.provided.entry(name).or_default().push((id, version));
        }
        for field in package.conflicts {
            for group in package.relation(field)? {
                for atom in group.atoms.clone() {
                    self.excluded.entry(atom.name).or_default().push((id, group.clone()));
                }
            }
        }
        Ok(())
    }

    /// Who excludes whom and how, if the package and something chosen exclude each other.
    fn clash(&self, id: Id) -> Result<Option<(Id, &'a str, Id)>, PackagesError> {
        let package = self.catalogue.get(id);
        let mut names = vec![(package.name, Some(package.version))];
        names.extend(package.provided()?);
        for (name, version) in names {
            for (other, group) in self.excluded.get(name).into_iter().flatten() {
                // A package may exclude what it provides itself: that means everybody else who does.
                if *other != id && self.admits(*other, group, name, version)? {
                    return Ok(Some((*other, group.text, id)));
                }
            }
        }
        for field in package.conflicts {
            for group in package.relation(field)? {
                for atom in &group.atoms {
                    let real = self.catalogue.find(atom.name).filter(|other| self.chosen.contains_key(other));
                    let real = real.map(|other| (other, Some(self.catalogue.get(other).version)));
                    let provided = self.provided.get(atom.name).into_iter().flatten().copied();
                    for (other, version) in real.into_iter().chain(provided) {
                        if other != id && self.admits(id, &group, atom.name, version)? {
                            return Ok(Some((id, group.text, other)));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    /// Whether a group of a package's relation names this name in this version. A bound never holds for a name that is
    /// provided without a version.
    fn admits(&self, owner: Id, group: &Group, name: &str, version: Option<&str>) -> Result<bool, PackagesError> {
        for atom in group.atoms.iter().filter(|atom| atom.name == name) {
            if self.holds(owner, atom, version)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn holds(&self, owner: Id, atom: &Atom, version: Option<&str>) -> Result<bool, PackagesError> {
        match (&atom.bound, version) {
            (None, _) => Ok(true),
            (Some(_), None) => Ok(false),
            (Some(bound), Some(version)) => bound.holds(version).map_err(|source| PackagesError::Relation {
                package: self.catalogue.get(owner).name.to_owned(),
                source,
            }),
        }
    }

    /// Who could satisfy a group, preferred first: for each atom the package of that name, then its providers by
    /// priority and name, as apt orders them. Packages that only a repository beside the base has come behind all of
    /// the base's.
    fn candidates(&self, group: &Group) -> Result<Vec<Id>, PackagesError> {
        let mut found = Vec::new();
        for atom in &group.atoms {
            let mut of_atom = Vec::new();
            if let Some(id) = self.catalogue.find(atom.name)
                && self.holds(id, atom, Some(self.catalogue.get(id).version))?
            {
                of_atom.push(id);
            }
            let mut providers = Vec::new();
            for (id, version) in self.catalogue.providers(atom.name) {
                if self.holds(*id, atom, *version)? {
                    let package = self.catalogue.get(*id);
                    providers.push((!package.essential, package.priority, package.name, *id));
                }
            }
            providers.sort_unstable();
            of_atom.extend(providers.into_iter().map(|(.., id)| id));
            of_atom.sort_by_key(|id| self.catalogue.get(*id).rank == Rank::Beside);
            found.extend(of_atom);
        }
        let mut seen = HashSet::new();
        found.retain(|id| seen.insert(*id));
        Ok(found)
    }

    fn unsatisfiable(&self, by: Id, group: &Group) -> Dead {
        let reasons: Vec<String> = group.atoms.iter().map(|atom| self.missing(atom)).collect();
        let mut elsewhere = Vec::new();
        for atom in &group.atoms {
            for (archive, version) in self.catalogue.passed(atom.name) {
                // A version that can't be read satisfies nothing.
                if self.holds(by, atom, Some(version)).unwrap_or(false) {
                    elsewhere.push([archive, atom.name, version].map(str::to_owned));
                }
            }
        }
        Dead {
            error: ResolveError::Unsatisfiable {
                elsewhere,
                asked: self.asked(by),
                chain: self.chain(by),
                relation: group.text.to_owned(),
                reason: reasons.join(", "),
            },
            choice: self.choice(by),
        }
    }

    fn missing(&self, atom: &Atom) -> String {
        match self.catalogue.find(atom.name) {
            Some(id) if atom.bound.is_some() => {
                format!("the archive has {} {}", atom.name, self.catalogue.get(id).version)
            }
            Some(_) => format!("{} conflicts with what else is needed", atom.name),
            None if self.catalogue.providers(atom.name).is_empty() => {
                format!("{} is not in the archive", atom.name)
            }
            None => format!("nothing that provides {} fits", atom.name),
        }
    }

    /// The nearest choice on the way from what was asked for to this package.
    fn choice(&self, mut id: Id) -> Option<(Id, usize, Id)> {
        while let Some(Because::Needed { by, choice }) = self.chosen.get(&id) {
            if let Some(number) = choice {
                return Some((*by, *number, id));
            }
            id = *by;
        }
        None
    }

    /// The packages from this one back to what was asked for.
    fn way(&self, mut id: Id) -> Vec<Id> {
        let mut way = vec![id];
        while let Some(Because::Needed { by, .. }) = self.chosen.get(&id) {
            id = *by;
            way.push(id);
        }
        way
    }

    fn asked(&self, id: Id) -> String {
        self.way(id).last().map(|id| self.catalogue.get(*id).name.to_owned()).unwrap_or_default()
    }

    /// The way from what was asked for to this package.
    fn chain(&self, id: Id) -> String {
        let link = |id: &Id| {
            let package = self.catalogue.get(*id);
            format!("{} {}", package.name, package.version)
        };
        self.way(id).iter().rev().map(link).collect::<Vec<_>>().join(LINK)
    }
}

#[cfg(test)]
mod tests;

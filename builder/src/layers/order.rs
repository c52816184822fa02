//! In which order packages are unpacked: all at once, except those whose preinst script needs what another one of them
//! brings. Such a script may use its Pre-Depends, which must be configured by then (Debian Policy 7.2).

use std::collections::{BTreeMap, BTreeSet};

use super::deb::Control;

/// Packages, by their place in the list, that are unpacked together; then some are configured.
#[derive(Debug, PartialEq, Eq)]
pub struct Wave {
    /// Unpacked together, their preinst scripts first.
    pub unpack: Vec<usize>,
    /// Configured afterwards because the next wave needs them; the last wave configures all that is left.
    pub configure: Vec<usize>,
}

/// Splits `packages` into as few waves as their Pre-Depends allow; mostly one.
pub fn waves(packages: &[&Control]) -> Vec<Wave> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, control) in packages.iter().enumerate() {
        by_name.entry(&control.package).or_default().push(index);
        for name in names(&control.provides) {
            by_name.entry(name).or_default().push(index);
        }
    }
    let among = |relations: &str| -> BTreeSet<usize> {
        names(relations).filter_map(|name| by_name.get(name)).flatten().copied().collect()
    };
    let before: Vec<_> = packages.iter().map(|control| among(&control.pre_depends)).collect();
    let needs: Vec<_> =
        packages.iter().zip(&before).map(|(control, before)| &among(&control.depends) | before).collect();
    let mut unpacked = BTreeSet::new();
    let mut configured = BTreeSet::new();
    let mut waves = Vec::new();
    while unpacked.len() < packages.len() {
        let left = || (0..packages.len()).filter(|index| !unpacked.contains(index));
        let waits =
            |index: &usize| packages[*index].members.contains_key("preinst") && !before[*index].is_subset(&configured);
        let mut unpack: Vec<usize> = left().filter(|index| !waits(index)).collect();
        let mut waiting: Vec<usize> = left().filter(waits).collect();
        let reachable: BTreeSet<usize> = unpacked.iter().copied().chain(unpack.iter().copied()).collect();
        let mut wanted: BTreeSet<usize> = BTreeSet::new();
        for index in waiting.iter().flat_map(|index| &before[*index]) {
            let all = closure(*index, &needs);
            if all.is_subset(&reachable) {
                wanted.extend(all);
            }
        }
        let configure: Vec<usize> = wanted.difference(&configured).copied().collect();
        if configure.is_empty() {
            // They need each other: nothing is left but to run them as they are, like dpkg.
            unpack.append(&mut waiting);
            unpack.sort_unstable();
        }
        unpacked.extend(unpack.iter().copied());
        configured.extend(configure.iter().copied());
        waves.push(Wave { unpack, configure });
    }
    waves
}

fn closure(of: usize, needs: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut found = BTreeSet::from([of]);
    let mut open = vec![of];
    while let Some(index) = open.pop() {
        open.extend(needs[index].iter().filter(|need| found.insert(**need)));
    }
    found
}

/// The names in a relation field: `a (>= 1), b:any | c` names a, b and c.
fn names(relations: &str) -> impl Iterator<Item = &str> {
    let name = |relation| str::split(str::trim(relation), [' ', '(', ':', '[']).next();
    relations.split([',', '|']).filter_map(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, pre_depends: &str, depends: &str, preinst: bool) -> Control {
        let members =
            if preinst { BTreeMap::from([("preinst".to_owned(), (0o755, Vec::new()))]) } else { BTreeMap::new() };
        Control {
            package: name.to_owned(),
            architecture: "all".to_owned(),
            paragraph: String::new(),
            multi_arch_same: false,
            provides: String::new(),
            pre_depends: pre_depends.to_owned(),
            depends: depends.to_owned(),
            members,
        }
    }

    fn split(packages: &[Control]) -> Vec<(Vec<usize>, Vec<usize>)> {
        waves(&packages.iter().collect::<Vec<_>>()).into_iter().map(|wave| (wave.unpack, wave.configure)).collect()
    }

    #[test]
    fn one_wave_is_enough_where_no_preinst_waits() {
        let packages =
            [package("a", "b", "", false), package("b", "", "a", false), package("c", "init (>= 1)", "", true)];
        assert_eq!(split(&packages), [(vec![0, 1, 2], vec![])]);
    }

    #[test]
    fn what_a_preinst_may_use_is_configured_with_all_it_needs() {
        let packages = [
            package("server", "adduser (>= 3.11), debconf | cdebconf", "", true),
            package("adduser", "", "passwd:any", false),
            package("passwd", "", "", true),
            package("other", "", "server", false),
        ];
        assert_eq!(split(&packages), [(vec![1, 2, 3], vec![1, 2]), (vec![0], vec![])]);
    }

    #[test]
    fn packages_that_wait_for_each_other_are_unpacked_all_the_same() {
        let packages = [package("a", "b", "", true), package("b", "a", "", true)];
        assert_eq!(split(&packages), [(vec![0, 1], vec![])]);
    }
}

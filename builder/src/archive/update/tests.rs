use std::fs;

use rackstick_image::recipe;

use super::*;
use crate::{
    archive::packages::tests::{index, stanza},
    sets,
};

/// A rack with one image that has these packages.
fn rack(packages: &str) -> Rack {
    let folder = tempfile::tempdir().unwrap();
    let text = "[rack]\nname = 'lab'\nversion = '1'\nbase = 'debian:trixie'\n\
        [guests.web]\nimage = 'web.toml'\nmemory = '64 MiB'\n";
    fs::write(folder.path().join("rack.toml"), text).unwrap();
    fs::write(folder.path().join("web.toml"), format!("packages = {packages}\n")).unwrap();
    recipe::load(&folder.path().join("rack.toml")).unwrap()
}

/// What a rack asks for of its base.
fn roots(rack: &Rack) -> Roots {
    sets::roots(rack).remove(recipe::RACK_BASE).unwrap()
}

/// What every rack asks for, kernels by metapackages, and these packages.
fn suites(kernel: &str, packages: &str) -> Suites {
    let mut text = packages.to_owned();
    for name in roots(&rack("[]")).into_values().flatten().collect::<BTreeSet<_>>() {
        match name.strip_prefix(KERNEL) {
            None => text += &stanza(&name, "1", ""),
            Some(flavour) => {
                let real = format!("{KERNEL}{kernel}-{flavour}");
                text += &stanza(&name, kernel, &format!("Depends: {real} (= {kernel})\n"));
                text += &stanza(&real, kernel, "");
            }
        }
    }
    Suites { indexes: Vec::new(), packages: vec![index(text)], firmware: Vec::new() }
}

/// Gives what was once in the archive: as if its .debs were fetched.
fn once(old: &str) -> impl Fn(&[String], &Newest) -> Result<Vec<(PackageIndex, bool)>, ResolveLockError> {
    let stanzas: Vec<String> = old.split("\n\n").map(|stanza| format!("{stanza}\n")).collect();
    move |names, _| {
        let of = |name: &String| stanzas.iter().find(|stanza| stanza.contains(&format!("Package: {name}\n")));
        Ok(names.iter().filter_map(of).map(|stanza| (index(stanza.clone()), false)).collect())
    }
}

/// A lock of all that.
fn all(suites: Suites, rack: &Rack) -> Lock {
    let resolved = resolve(Holding::all_but(&Base::default(), &[]), suites, rack, &|_, _| Ok(Vec::new()));
    let resolved = resolved.map(|(base, _)| base);
    lock_of(rack, &BTreeMap::new(), [(recipe::RACK_BASE.to_owned(), resolved)].into_iter()).unwrap()
}

fn resolve(
    held: Holding,
    suites: Suites,
    rack: &Rack,
    fetch: Fetch<'_>,
) -> Result<(Base, Vec<Also>), ResolveLockError> {
    held.resolve(suites, rack, recipe::RACK_BASE, roots(rack), fetch)
}

/// Name and version of packages whose version is not 1, and why those moved that were not named.
fn updated(old: &str, new: &str, names: &[&str]) -> Result<(Vec<String>, Vec<Also>), ResolveLockError> {
    let rack = rack("['web', 'db']");
    let before = all(suites("6.12.1", old), &rack);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let text = suites("6.12.1", old).packages.remove(0).text;
    let held = held(&before, &names)?.remove(recipe::RACK_BASE).unwrap();
    let (base, also) = resolve(held, suites("6.12.2", new), &rack, &once(&text))?;
    let moved = base.packages.iter().filter(|(_, package)| !["1", "6.12.1"].contains(&package.version.as_str()));
    Ok((moved.map(|(name, package)| format!("{name} {}", package.version)).collect(), also))
}

#[test]
fn only_what_is_named_moves_whatever_else_the_archive_has() {
    let old = stanza("web", "1", "Depends: lib\n") + &stanza("db", "1", "Depends: lib\n") + &stanza("lib", "1", "");
    let new = stanza("web", "2", "Depends: lib, fresh\n")
        + &stanza("db", "2", "Depends: lib (>= 2)\n")
        + &stanza("lib", "2", "")
        + &stanza("fresh", "3", "");
    let (moved, also) = updated(&old, &new, &["web"]).unwrap();
    assert_eq!(moved, ["fresh 3", "web 2"], "and what it newly needs");
    assert_eq!(also, []);
    // The old version may still be in an index, beside the new one.
    let (moved, _) = updated(&old, &(old.clone() + &new), &["lib"]).unwrap();
    assert_eq!(moved, ["lib 2"]);
}

#[test]
fn what_can_not_stay_beside_what_is_named_moves_too_and_the_reason_is_said() {
    let old = stanza("web", "1", "Depends: lib\n")
        + &stanza("db", "1", "Depends: lib (= 1)\n")
        + &stanza("lib", "1", "")
        + &stanza("other", "1", "");
    let new = stanza("web", "2", "Depends: lib (>= 2)\n")
        + &stanza("db", "2", "Depends: lib (= 2)\n")
        + &stanza("lib", "2", "");
    let (moved, also) = updated(&old, &new, &["web"]).unwrap();
    assert_eq!(moved, ["db 2", "lib 2", "web 2"]);
    let expected = [("lib", "web 2 needs lib (>= 2)"), ("db", "db 1 needs lib (= 1)")];
    assert_eq!(
        also,
        expected.map(|(name, why)| Also {
            base: recipe::RACK_BASE.to_owned(),
            package: name.to_owned(),
            why: why.to_owned()
        })
    );
    let breaks =
        stanza("web", "2", "Breaks: lib (<< 2)\n") + &stanza("db", "1", "Depends: lib\n") + &stanza("lib", "2", "");
    let free = stanza("web", "1", "") + &stanza("db", "1", "Depends: lib\n") + &stanza("lib", "1", "");
    assert_eq!(updated(&free, &breaks, &["web"]).unwrap().0, ["lib 2", "web 2"]);
}

#[test]
fn a_need_that_no_move_satisfies_is_an_error() {
    let old = stanza("web", "1", "") + &stanza("db", "1", "");
    let new = stanza("web", "2", "Depends: lib\n") + &stanza("lib", "3", "Depends: nowhere\n") + &stanza("db", "1", "");
    let ResolveLockError::Recipe { source, .. } = updated(&old, &new, &["web"]).unwrap_err() else { panic!() };
    let expected = "web.toml:1:13: `image:web` can't be had: lib 3 needs nowhere: nowhere is not in the archive\n  \
        which is needed by web 2";
    assert!(source.to_string().ends_with(expected), "{source}");
    let new = stanza("web", "2", "Depends: lib\n") + &stanza("lib", "3", "Conflicts: db\n") + &stanza("db", "1", "");
    let ResolveLockError::Recipe { source, .. } = updated(&old, &new, &["web"]).unwrap_err() else { panic!() };
    let expected =
        "`image:web` can't be had: lib 3 conflicts with db\n  which is needed by web 2\nand there is also db 1";
    assert!(source.to_string().ends_with(expected), "{source}");
}

#[test]
fn a_kernel_moves_only_by_its_own_name_or_by_its_metapackages() {
    let packages = stanza("web", "1", "") + &stanza("db", "1", "");
    let host = "linux-image-6.12.2-amd64 6.12.2";
    for (name, moved) in [
        ("web", vec![]),
        ("linux-image-amd64", vec![host]),
        ("linux-image-6.12.1-amd64", vec![host]),
        ("linux-image-cloud-amd64", vec!["linux-image-6.12.2-cloud-amd64 6.12.2"]),
    ] {
        assert_eq!(updated(&packages, &packages, &[name]).unwrap().0, moved, "{name}");
    }
}

#[test]
fn a_name_that_is_not_in_the_lock_is_an_error_with_a_near_one() {
    let packages = stanza("web", "1", "") + &stanza("db", "1", "");
    let error = updated(&packages, &packages, &["weeb"]).unwrap_err().to_string();
    assert_eq!(error, "`weeb` is not a package of the lock; did you mean `web`?");
}

#[test]
fn a_package_that_is_nowhere_any_more_in_its_locked_version_is_an_error() {
    let rack = rack("['web', 'db']");
    let old = stanza("web", "1", "") + &stanza("db", "1", "");
    let new = stanza("web", "2", "") + &stanza("db", "2", "");
    let before = all(suites("6.12.1", &old), &rack);
    let held = Holding::all_but(before.own(), &["web".to_owned()]);
    let error = resolve(held, suites("6.12.1", &new), &rack, &|_, _| Ok(Vec::new())).unwrap_err().to_string();
    assert!(error.contains("its file for db 1 is of another package or version"), "{error}");
}

#[test]
fn a_package_is_updated_in_each_base_that_has_it_and_other_bases_are_not_touched() {
    let rack = rack("['web', 'db']");
    let mut lock = all(suites("6.12.1", &(stanza("web", "1", "") + &stanza("db", "1", ""))), &rack);
    let mut other = lock.own().clone();
    other.packages.remove("db");
    other.roots.remove(sets::HOST);
    lock.bases.insert("debian:bookworm".to_owned(), other);
    for (name, bases) in [
        ("web", vec!["debian:bookworm", "debian:trixie"]),
        ("db", vec!["debian:trixie"]),
        ("linux-image-amd64", vec!["debian:trixie"]),
    ] {
        assert!(held(&lock, &[name.to_owned()]).unwrap().into_keys().eq(bases), "{name}");
    }
    assert!(held(&lock, &["web".to_owned(), "bd".to_owned()]).is_err());
}

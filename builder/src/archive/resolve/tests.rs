use super::*;
use crate::archive::packages::tests::{beside, index, stanza};

/// What `wanted` needs beyond what `base` needs, by name.
fn set(text: &str, base: &[&str], wanted: &[&str]) -> Result<Vec<String>, ResolveError> {
    let indexes = [index(text)];
    let catalogue = Catalogue::read(&indexes)?;
    let ids = |names: &[&str]| names.iter().map(|name| find(&catalogue, name)).collect::<Result<Vec<_>, _>>();
    let base = resolve(&catalogue, &BTreeSet::new(), &ids(base)?)?;
    let chosen = resolve(&catalogue, &base, &ids(wanted)?)?;
    let mut names: Vec<String> = chosen.into_iter().map(|id| catalogue.get(id).name.to_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

#[test]
fn needs_are_followed_and_cycles_end() {
    let text = stanza("a", "1", "Depends: b\n")
        + &stanza("b", "1", "Pre-Depends: c\nRecommends: x\n")
        + &stanza("c", "1", "Depends: a\n")
        + &stanza("x", "1", "");
    assert_eq!(set(&text, &[], &["a"]).unwrap(), ["a", "b", "c"]);
    assert_eq!(set(&text, &["c"], &["a", "x"]).unwrap(), ["x"], "the base is not repeated");
}

#[test]
fn an_alternative_is_decided_only_after_what_is_certain() {
    let text = stanza("a", "1", "Depends: first | second, d\n")
        + &stanza("first", "1", "")
        + &stanza("second", "1", "")
        + &stanza("d", "1", "Depends: second\n");
    assert_eq!(set(&text, &[], &["a"]).unwrap(), ["a", "d", "second"]);
    assert_eq!(set(&text.replace("second, d", "second"), &[], &["a"]).unwrap(), ["a", "first"]);
}

#[test]
fn providers_are_taken_by_version_priority_and_name() {
    let text = stanza("a", "1", "Depends: awk\n")
        + &stanza("gawk", "1", "Priority: optional\nProvides: awk\n")
        + &stanza("mawk", "1", "Priority: required\nProvides: awk (= 2)\n");
    assert_eq!(set(&text, &[], &["a"]).unwrap(), ["a", "mawk"]);
    assert_eq!(set(&text.replace("required", "optional"), &[], &["a"]).unwrap(), ["a", "gawk"]);
    let bound = text.replace("required", "extra").replace("Depends: awk", "Depends: awk (>= 2)");
    assert_eq!(set(&bound, &[], &["a"]).unwrap(), ["a", "mawk"], "gawk provides no version");
}

#[test]
fn an_alternative_that_leads_nowhere_is_taken_back() {
    let text = stanza("a", "1", "Depends: bad | good, z\n")
        + &stanza("bad", "1", "Depends: deep\n")
        + &stanza("deep", "1", "Depends: nowhere\n")
        + &stanza("good", "1", "")
        + &stanza("z", "1", "");
    assert_eq!(set(&text, &[], &["a"]).unwrap(), ["a", "good", "z"]);
    let text = text.replace("Depends: nowhere", "Conflicts: z");
    assert_eq!(set(&text, &[], &["a"]).unwrap(), ["a", "good", "z"]);
}

#[test]
fn packages_that_exclude_each_other_are_reported_with_both_ways_to_them() {
    let text = stanza("a", "1", "Depends: b\n")
        + &stanza("b", "1", "Conflicts: mta (<< 3)\n")
        + &stanza("c", "1", "Depends: d\n")
        + &stanza("d", "2", "Provides: mta (= 2)\n");
    let expected = "a 1 -> b 1 conflicts with mta (<< 3), but there is also c 1 -> d 2";
    assert_eq!(set(&text, &[], &["a", "c"]).unwrap_err().to_string(), expected);
    assert_eq!(set(&text, &[], &["c", "a"]).unwrap_err().to_string(), expected);
    assert_eq!(set(&text.replace("mta (= 2)", "mta"), &[], &["a", "c"]).unwrap().len(), 4, "no version, no bound");
}

#[test]
fn a_package_may_exclude_others_that_provide_the_same() {
    let text = stanza("postfix", "1", "Provides: mta\nConflicts: mta\n") + &stanza("exim", "1", "Provides: mta\n");
    assert_eq!(set(&text, &[], &["postfix"]).unwrap(), ["postfix"]);
    assert!(set(&text, &["exim"], &["postfix"]).is_err());
}

#[test]
fn a_need_that_nothing_satisfies_is_reported_with_the_way_to_it() {
    let text =
        stanza("web", "1", "Depends: b\n") + &stanza("b", "1.26", "Depends: c (>= 2)\n") + &stanza("c", "1.9", "");
    assert_eq!(
        set(&text, &[], &["web"]).unwrap_err().to_string(),
        "web 1 -> b 1.26 needs c (>= 2): the archive has c 1.9"
    );
    let text = text.replace("c (>= 2)", "d | e");
    assert_eq!(
        set(&text, &[], &["web"]).unwrap_err().to_string(),
        "web 1 -> b 1.26 needs d | e: d is not in the archive, e is not in the archive"
    );
}

#[test]
fn what_is_needed_comes_from_the_base_and_what_lies_beside_it_is_told() {
    let base = stanza("web", "1", "Depends: a\n")
        + &stanza("a", "1", "Depends: mta\n")
        + &stanza("exim", "1", "Priority: extra\nProvides: mta\n")
        + &stanza("b", "1", "");
    let beside_it = stanza("agent", "5", "Depends: b (>= 2)\n")
        + &stanza("mta", "7", "Priority: required\n")
        + &stanza("aaa", "7", "Priority: required\nProvides: mta\n")
        + &stanza("b", "2", "");
    let solve = |named: &[&str], wanted: &str| {
        let indexes = [beside("x", named, beside_it.clone()), index(base.clone())];
        let catalogue = Catalogue::read(&indexes)?;
        let chosen = resolve(&catalogue, &BTreeSet::new(), &[find(&catalogue, wanted)?])?;
        let name = |id| format!("{} {}", catalogue.get(id).name, catalogue.get(id).version);
        Ok::<_, ResolveError>(chosen.into_iter().map(name).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>())
    };
    assert_eq!(solve(&[], "web").unwrap(), ["a 1", "exim 1", "web 1"], "nobody else's mail server comes into the base");
    assert_eq!(solve(&["b"], "agent").unwrap(), ["agent 5", "b 2"]);
    match solve(&[], "agent") {
        Err(error @ ResolveError::Unsatisfiable { .. }) => {
            assert_eq!(error.to_string(), "agent 5 needs b (>= 2): the archive has b 1");
            let ResolveError::Unsatisfiable { elsewhere, .. } = error else { unreachable!() };
            assert_eq!(elsewhere, [["x", "b", "2"].map(str::to_owned)]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_names_are_answered_with_near_ones_and_virtual_ones_with_their_providers() {
    let text = stanza("nginx-light", "1", "Provides: httpd\n") + &stanza("nginx", "1", "") + &stanza("zsh", "1", "");
    match set(&text, &[], &["nginx-lite"]) {
        Err(ResolveError::Unknown { nearest, .. }) => assert_eq!(nearest, ["nginx-light", "nginx"]),
        other => panic!("{other:?}"),
    }
    match set(&text, &[], &["httpd"]) {
        Err(ResolveError::Virtual { providers, .. }) => assert_eq!(providers, ["nginx-light"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kernels_metapackage_stands_for_its_kernel_and_nothing_else_does() {
    let text = stanza("linux-image-amd64", "6.12-1", "Depends: linux-image-6.12-amd64 (= 6.12-1)\n")
        + &stanza("linux-image-6.12-amd64", "6.12-1", "Depends: kmod, initramfs-tools | dracut\n")
        + &stanza("systemd-boot-efi", "257", "Depends: linux-image-amd64 (= 257)\n");
    let indexes = [index(text)];
    let catalogue = Catalogue::read(&indexes).unwrap();
    let name = |name| catalogue.get(find_unpacked(&catalogue, name).unwrap()).name;
    assert_eq!(name("linux-image-amd64"), "linux-image-6.12-amd64");
    assert_eq!(name("linux-image-6.12-amd64"), "linux-image-6.12-amd64");
    assert_eq!(name("systemd-boot-efi"), "systemd-boot-efi");
}

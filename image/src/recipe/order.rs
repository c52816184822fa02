//! The order in which guests start: after those that they name, otherwise by name.

use std::collections::{BTreeMap, BTreeSet};

/// Names in an order in which each comes after those it names; if there is none, a cycle: each name of it waits for
/// the next, the last for the first. Names without an entry of their own are ignored.
pub(super) fn start_order<'a>(after: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Result<Vec<&'a str>, Vec<&'a str>> {
    let mut waiting: BTreeMap<&str, BTreeSet<&str>> = after
        .iter()
        .map(|(&name, before)| (name, before.iter().copied().filter(|other| after.contains_key(other)).collect()))
        .collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(name) = waiting.iter().find(|(_, before)| before.is_empty()).map(|(&name, _)| name) {
        waiting.remove(name);
        for before in waiting.values_mut() {
            before.remove(name);
        }
        order.push(name);
    }
    match waiting.keys().next() {
        None => Ok(order),
        Some(&first) => Err(cycle(&waiting, first)),
    }
}

/// Follows who waits for whom until a name comes up again. Every name in `waiting` waits for another one in it.
fn cycle<'a>(waiting: &BTreeMap<&'a str, BTreeSet<&'a str>>, first: &'a str) -> Vec<&'a str> {
    let mut path = vec![first];
    let mut current = first;
    while let Some(&next) = waiting.get(current).and_then(BTreeSet::first) {
        if let Some(start) = path.iter().position(|&seen| seen == next) {
            path.drain(..start);
            break;
        }
        path.push(next);
        current = next;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(after: &[(&'static str, &[&'static str])]) -> Result<Vec<&'static str>, Vec<&'static str>> {
        start_order(&after.iter().map(|(name, before)| (*name, before.iter().copied().collect())).collect())
    }

    #[test]
    fn guests_start_after_those_they_name_and_otherwise_by_name() {
        assert_eq!(order(&[("a", &["c"]), ("b", &[]), ("c", &[])]), Ok(vec!["b", "c", "a"]));
        assert_eq!(order(&[("d", &[]), ("c", &["d"]), ("b", &["c"]), ("a", &["gone"])]), Ok(vec!["a", "d", "c", "b"]));
        assert_eq!(order(&[]), Ok(vec![]));
    }

    #[test]
    fn a_cycle_is_named_without_those_that_only_wait_for_it() {
        assert_eq!(order(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]), Err(vec!["b", "c"]));
        assert_eq!(order(&[("a", &["a"])]), Err(vec!["a"]));
    }
}

//! Sets of packages drawn at random from the whole archive. Whatever is not chosen as apt chooses it must be explained
//! by one of the [`RULES`], each of which is checked, not believed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    apt::{Answer, Apt, Deb, run},
    archive::Archive,
    closure::{difference, package_of},
    lock,
};

/// Of which the draw begins; another one by the environment, in decimal.
const SEED: (&str, u64) = ("RACKSTICK_SEED", 4);
/// How many sets are drawn, and how many of them `ci/test` looks at.
const SETS: usize = 200;
const SAMPLE: usize = 20;
/// How many packages a set has at most.
const MAX_PACKAGES: usize = 4;
/// Each so many sets one asks for two packages of which one excludes the other.
const EXCLUDING: usize = 8;

/// A set where we and apt are not of one mind.
struct Difference<'a> {
    archive: &'a Archive,
    apt: &'a Apt,
    asked: &'a [String],
    ours: &'a BTreeSet<Deb>,
    apts: &'a Answer,
}

/// A reason for which we may differ, and what proves that it is the one.
struct Rule {
    name: &'static str,
    reason: &'static str,
    holds: fn(&Difference) -> bool,
}

/// All of them. Of each, [`Difference::is_whole`] must hold too.
const RULES: &[Rule] = &[
    Rule {
        name: "certain first",
        reason: "apt settles each alternative when it comes to it. We settle what is certain first, and find the \
                 alternative already satisfied by it.",
        holds: |difference| difference.begins_at_choices(false),
    },
    Rule {
        name: "first provider",
        reason: "of several packages of one priority that provide what is needed, apt goes by the order of its cache. We \
                 take the first by name, which does not change with the rest of the archive.",
        holds: |difference| difference.begins_at_choices(true),
    },
    Rule {
        name: "apt gives up",
        reason: "apt's solver takes no choice back, or would rather remove a package of the base than choose another. \
                 There is a set without either, and apt installs it when it is named.",
        holds: |difference| matches!(difference.apts, Answer::Refused(_)),
    },
];

#[test]
fn random_sets_are_resolved_as_by_apt() {
    compare(SAMPLE);
}

#[test]
#[ignore = "takes minutes: run by `ci/soak closure`"]
fn two_hundred_random_sets_are_resolved_as_by_apt() {
    compare(SETS);
}

fn compare(count: usize) {
    let seed = std::env::var(SEED.0).map_or(SEED.1, |text| text.parse().expect("the seed is a number"));
    println!("{count} sets of seed {seed}; {}=NUMBER draws others", SEED.0);
    let folder = tempfile::tempdir().unwrap();
    let apt = Apt::new(folder.path(), "trixie", "");
    let archive = Archive::read(&run(apt.command("apt-cache").arg("dumpavail")));
    let sets = draw(&archive, seed, count);
    let (base, refused) = lock::some(folder.path(), &sets);
    apt.set_installed(&base.sets["base"]);
    let mut archive = archive;
    archive.set_base(&base.sets["base"]);

    let (apt, archive) = (&apt, &archive);
    let judge = |name: &String, asked: &Vec<String>| -> Result<&'static str, String> {
        let apts = apt.ask(asked);
        if refused.contains(name) {
            return match apts {
                Answer::Refused(_) => Ok("refused by both"),
                Answer::Installed(_) => Err(format!("{asked:?}: we refuse what apt installs\n")),
            };
        }
        let ours = lock::chosen(&base, &format!("image:{name}"));
        if matches!(&apts, Answer::Installed(apts) if *apts == ours) {
            return Ok("the same");
        }
        let found = Difference { archive, apt, asked, ours: &ours, apts: &apts };
        let rule = RULES.iter().find(|rule| (rule.holds)(&found)).filter(|_| found.is_whole());
        rule.map(|rule| rule.name).ok_or_else(|| match &apts {
            Answer::Installed(apts) => difference(&format!("{asked:?}"), &ours, apts),
            Answer::Refused(why) => format!("{asked:?}: apt refuses what we install: {why}\n"),
        })
    };
    let half = sets.len() / 2;
    let (one, two): (Vec<_>, Vec<_>) = sets.iter().enumerate().partition(|(number, _)| *number < half);
    let judge = &judge;
    let run = move |sets: Vec<(usize, (&String, &Vec<String>))>| {
        sets.into_iter().map(|(_, (name, asked))| judge(name, asked)).collect::<Vec<_>>()
    };
    let verdicts = std::thread::scope(|scope| {
        let one = scope.spawn(move || run(one));
        let two = run(two);
        [one.join().unwrap(), two].concat()
    });
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for verdict in verdicts.iter().flatten() {
        *counts.entry(verdict).or_default() += 1;
    }
    for (verdict, count) in &counts {
        let rule = RULES.iter().find(|rule| rule.name == *verdict);
        println!("{count:4} {verdict}{}", rule.map(|rule| format!(": {}", rule.reason)).unwrap_or_default());
    }
    let wrong: String = verdicts.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "without an explanation, of seed {seed}:\n{wrong}");
}

/// What is asked for, by the names of sets.
fn draw(archive: &Archive, seed: u64, count: usize) -> BTreeMap<String, Vec<String>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let names: Vec<&String> = archive.packages().collect();
    let excluding: Vec<(&String, &String)> = archive.excluding().collect();
    let mut sets = BTreeMap::new();
    for number in 0..count {
        let packages: BTreeSet<&String> = if number % EXCLUDING == EXCLUDING - 1 {
            let (one, other) = excluding[random.usize(..excluding.len())];
            [one, other].into()
        } else {
            (0..random.usize(1..=MAX_PACKAGES)).map(|_| names[random.usize(..names.len())]).collect()
        };
        sets.insert(format!("r{number:03}"), packages.into_iter().cloned().collect());
    }
    sets
}

impl Difference<'_> {
    /// Whether ours is a whole set: apt, asked for all of it by name, installs that and nothing else.
    fn is_whole(&self) -> bool {
        let names: Vec<String> = self.ours.iter().map(name).collect();
        matches!(self.apt.ask(&names), Answer::Installed(apts) if apts == *self.ours)
    }

    /// Whether all that only one of us has follows from needs with a choice, and whether each of these is satisfied in
    /// ours by a package that is needed without a choice, or by the first provider if that will do.
    fn begins_at_choices(&self, or_first: bool) -> bool {
        let Answer::Installed(apts) = self.apts else { return false };
        let (ours, apts): (BTreeSet<String>, BTreeSet<String>) =
            (self.ours.iter().map(name).collect(), apts.iter().map(name).collect());
        let certain = self.archive.certain(self.asked);
        let both: BTreeSet<String> = ours.intersection(&apts).cloned().collect();
        let settled = |need: &[String], satisfied_by: &BTreeSet<String>| {
            let first = || self.archive.first_provider(need).is_some_and(|name| satisfied_by.contains(&name));
            satisfied_by.iter().any(|name| certain.contains(name)) || (or_first && first())
        };
        self.archive.follows(&both, &apts, &ours, &settled) && self.archive.follows(&both, &ours, &apts, &|_, _| true)
    }
}

fn name((path, _): &Deb) -> String {
    package_of(path).to_owned()
}

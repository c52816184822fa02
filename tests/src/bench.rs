//! What benches share: medians, a table for people, `<target>/bench/<name>.json` for programs.

use std::fs;

use serde::Serialize;

use crate::place;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    /// What was measured.
    pub measure: &'static str,
    /// The median of all runs.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be, as `<= 60`.
    pub goal: &'static str,
    /// The same of others, measured alike; empty where nobody was.
    pub peers: std::collections::BTreeMap<&'static str, f64>,
}

impl Measure {
    /// The median of `values`, of which there must be one at least.
    pub fn median(measure: &'static str, mut values: Vec<f64>, unit: &'static str, goal: &'static str) -> Self {
        values.sort_by(f64::total_cmp);
        let value = values[values.len() / 2];
        Self { measure, value, unit, goal, peers: std::collections::BTreeMap::new() }
    }
}

/// Prints the figures and writes them down.
pub fn report(name: &str, measures: &[Measure]) {
    println!("{:<40} {:>10} {:<6} goal", "measure", "value", "unit");
    for Measure { measure, value, unit, goal, .. } in measures {
        println!("{measure:<40} {value:>10.1} {unit:<6} {goal}");
    }
    let folder = place::rig().with_file_name("bench");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    let path = folder.join(format!("{name}.json"));
    let json = serde_json::to_string_pretty(measures).expect("figures are plain");
    fs::write(&path, json + "\n").expect("the target folder can be written");
    println!("written to {}", path.display());
}

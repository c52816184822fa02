//! What of an archive does not come into the image as it stands there: said once for each kind, with an example.

use std::collections::BTreeMap;

/// Kinds of things that were left out, with how many there were and the first.
#[derive(Debug, Default)]
pub struct Notes(BTreeMap<&'static str, (usize, String)>);

impl Notes {
    /// Adds one.
    pub fn add(&mut self, kind: &'static str, example: String) {
        self.0.entry(kind).or_insert((0, example)).0 += 1;
    }

    /// Adds several.
    pub fn add_many(&mut self, kind: &'static str, count: usize, example: String) {
        if count > 0 {
            self.0.entry(kind).or_insert((0, example)).0 += count;
        }
    }

    /// A line for each kind.
    pub fn lines(&self) -> Vec<String> {
        let line = |(kind, (count, example)): (&&str, &(usize, String))| match count {
            1 => format!("`{example}`: {kind}"),
            more => format!("`{example}` and {} more: {kind}", more - 1),
        };
        self.0.iter().map(line).collect()
    }
}

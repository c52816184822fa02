//! Reads TOML 1.1 as tables whose keys are known beforehand. Every unknown key, missing key and wrong type is reported
//! with its place; none of them stops the reading, so that one run finds everything.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Diagnostic, Place, Placed, Source},
    names,
};

/// What was found wrong in one file so far.
pub(super) struct Report {
    source: Arc<Source>,
    found: Vec<Diagnostic>,
}

impl Report {
    pub fn new(source: Arc<Source>) -> Self {
        Self { source, found: Vec::new() }
    }

    /// Adds one.
    pub fn wrong(&mut self, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.found.push(Diagnostic::new(self.place(span), message).hint(hint));
    }

    pub fn place(&self, span: Range<usize>) -> Place {
        Place { source: Arc::clone(&self.source), span }
    }

    pub fn placed(&self, text: &Text<'_>) -> Placed<String> {
        Placed { value: text.value.to_owned(), place: self.place(text.span.clone()) }
    }

    /// Where `part` stands in the file, `text` being what was read around it. If the string has escapes, that is the
    /// whole string.
    pub fn within(&self, text: &Text<'_>, part: Range<usize>) -> Range<usize> {
        let start = text.span.start + 1;
        match self.source.text.get(start..start + text.value.len()) {
            Some(raw) if raw == text.value => start + part.start..start + part.end,
            _ => text.span.clone(),
        }
    }

    /// Adds what was found elsewhere.
    pub fn append(&mut self, found: Vec<Diagnostic>) {
        self.found.extend(found);
    }

    /// All that was found, by place, what was found elsewhere last.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        let own = &self.source.path;
        self.found.sort_by_key(|Diagnostic { place, .. }| (place.source.path != *own, place.span.start));
        self.found
    }
}

/// A string of the recipe.
#[derive(Clone)]
pub(super) struct Text<'a> {
    pub value: &'a str,
    pub span: Range<usize>,
}

/// A key that a table may have.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Whether it must be there.
    pub required: bool,
    /// The key with a value, as it could stand in a recipe.
    pub example: &'static str,
}

/// A kind of table.
pub struct Shape {
    /// What such a table is, with its article: `a guest`.
    pub what: &'static str,
    /// The keys that it may have.
    pub keys: &'static [Key],
}

/// A table with only known keys.
pub(super) struct Table<'a> {
    shape: &'static Shape,
    content: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    /// Checks the table's keys. `title` is how it is called in messages, `at` where a missing key is shown.
    pub fn new(
        report: &mut Report,
        shape: &'static Shape,
        title: &str,
        at: Range<usize>,
        content: &'a DeTable<'a>,
    ) -> Self {
        let mut mistyped = Vec::new();
        for key in content.keys() {
            let name: &str = key.get_ref();
            if shape.keys.iter().all(|known| known.name != name) {
                let known = shape.keys.iter().map(|known| known.name);
                let near = names::closest(name, known.clone());
                mistyped.extend(near);
                let hint = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("{} has the keys {}", shape.what, names::list(known)),
                };
                report.wrong(key.span(), format!("unknown key `{}` in {title}", names::shown(name)), hint);
            }
        }
        // A key that was only mistyped is not missing too.
        for key in shape.keys.iter().filter(|key| key.required && !mistyped.contains(&key.name)) {
            if content.keys().all(|name| name.get_ref() != key.name) {
                report.wrong(
                    at.clone(),
                    format!("`{}` is missing in {title}", key.name),
                    format!("for example `{}`", key.example),
                );
            }
        }
        Self { shape, content }
    }

    /// Checks that the value is a table, then its keys.
    pub fn open(
        report: &mut Report,
        shape: &'static Shape,
        title: &str,
        at: Range<usize>,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(content) => Some(Self::new(report, shape, title, at, content)),
            other => {
                let hint =
                    format!("{} has the keys {}", shape.what, names::list(shape.keys.iter().map(|key| key.name)));
                report.wrong(value.span(), format!("{title} must be a table, not {}", kind(other)), hint);
                None
            }
        }
    }

    /// The value of a key, if it is there.
    pub fn get(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.content.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    /// The place of a key, if it is there.
    pub fn key_span(&self, name: &str) -> Option<Range<usize>> {
        self.content.keys().find(|key| key.get_ref() == name).map(Spanned::span)
    }

    /// A string.
    pub fn text(&self, report: &mut Report, name: &str) -> Option<Text<'a>> {
        let value = self.get(name)?;
        let text = text(value);
        if text.is_none() {
            self.wrong_type(report, name, "a string", value);
        }
        text
    }

    /// A whole number within a range.
    pub fn number<T>(&self, report: &mut Report, name: &str, range: (T, T)) -> Option<T>
    where
        T: TryFrom<i64> + Copy + PartialOrd + std::fmt::Display,
    {
        let value = self.get(name)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(report, name, "a whole number", value);
            return None;
        };
        let number =
            i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|number| T::try_from(number).ok());
        let number = number.filter(|number| (range.0..=range.1).contains(number));
        if number.is_none() {
            let message = format!("`{name}` is out of range: {integer}");
            report.wrong(value.span(), message, format!("{} to {} is allowed", range.0, range.1));
        }
        number
    }

    /// `true` or `false`; an absent one is false.
    pub fn flag(&self, report: &mut Report, name: &str) -> Option<bool> {
        let Some(value) = self.get(name) else { return Some(false) };
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(report, name, "`true` or `false`", value);
        }
        flag
    }

    /// An array of strings; an absent one is empty.
    pub fn texts(&self, report: &mut Report, name: &str) -> Vec<Text<'a>> {
        let Some(value) = self.get(name) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(report, name, "an array of strings", value);
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match text(item) {
                Some(text) => texts.push(text),
                None => self.wrong_type(report, name, "an array of strings", item),
            }
        }
        texts
    }

    /// The entries of a table whose keys the user chooses, `[networks.NAME]` or `address = { NAME = ... }`, in the
    /// file's order: of two that clash, the second is wrong.
    pub fn entries(&self, report: &mut Report, name: &str) -> Vec<(Text<'a>, &'a Spanned<DeValue<'a>>)> {
        let Some(value) = self.get(name) else { return Vec::new() };
        let DeValue::Table(content) = value.get_ref() else {
            self.wrong_type(report, name, "a table", value);
            return Vec::new();
        };
        let entries = content.iter().map(|(key, value)| (Text { value: key.get_ref(), span: key.span() }, value));
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(name, _)| name.span.start);
        entries
    }

    /// Reports a value of the wrong type; `value` may be the key's or one inside it.
    pub fn wrong_type(&self, report: &mut Report, name: &str, wanted: &str, value: &Spanned<DeValue<'_>>) {
        let found = kind(value.get_ref());
        let example = self.shape.keys.iter().find(|key| key.name == name).map_or("", |key| key.example);
        report.wrong(
            value.span(),
            format!("`{name}` must be {wanted}, but {found} stands here"),
            format!("for example `{example}`"),
        );
    }
}

/// The value of a key within tables: the last of the path, each other one being a table's.
pub(super) fn value<'a>(root: &'a DeTable<'a>, path: &[&str]) -> Option<&'a Spanned<DeValue<'a>>> {
    let (first, rest) = path.split_first()?;
    let (_, found) = root.iter().find(|(key, _)| key.get_ref() == first)?;
    if rest.is_empty() { Some(found) } else { value(found.get_ref().as_table()?, rest) }
}

/// The value as a string, if it is one.
pub(super) fn text<'a>(value: &'a Spanned<DeValue<'a>>) -> Option<Text<'a>> {
    value.get_ref().as_str().map(|text| Text { value: text, span: value.span() })
}

/// What a value is, with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

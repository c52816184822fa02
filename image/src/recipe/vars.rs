//! Reads `[vars]`: values of the user's own, for templates.

use std::collections::BTreeMap;

use toml::{Spanned, de::DeValue};

use super::{
    names::{self, shown},
    reader::{Report, Table, Text},
};

/// A value for templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Var {
    /// A string.
    Text(String),
    /// A whole number.
    Number(i64),
    /// `true` or `false`.
    Flag(bool),
    /// Several in order.
    List(Vec<Var>),
    /// Several by name.
    Table(BTreeMap<String, Var>),
}

/// Reads all of a recipe's.
pub(super) fn read(report: &mut Report, table: &Table<'_>) -> BTreeMap<String, Var> {
    let mut vars = BTreeMap::new();
    for (name, value) in table.entries(report, "vars") {
        if let Some(var) = named(report, &name, value) {
            vars.insert(name.value.to_owned(), var);
        }
    }
    vars
}

fn named(report: &mut Report, name: &Text<'_>, value: &Spanned<DeValue<'_>>) -> Option<Var> {
    if !names::is_variable(name.value) {
        let message = format!("`{}` can't be the name of a variable", shown(name.value));
        let hint = format!("1 to {} letters, digits and `_`, not beginning with a digit", names::NAME_MAX);
        report.wrong(name.span.clone(), message, hint);
        return None;
    }
    var(report, value)
}

/// TOML's reader has bounded how deep it nests.
fn var(report: &mut Report, value: &Spanned<DeValue<'_>>) -> Option<Var> {
    match value.get_ref() {
        DeValue::String(text) => Some(Var::Text(text.to_string())),
        DeValue::Boolean(flag) => Some(Var::Flag(*flag)),
        DeValue::Integer(number) => {
            let read = i64::from_str_radix(number.as_str(), number.radix()).ok();
            if read.is_none() {
                report.wrong(value.span(), format!("{number} is too big a number"), "write it as a string");
            }
            read.map(Var::Number)
        }
        DeValue::Array(items) => {
            let items: Vec<Option<Var>> = items.iter().map(|item| var(report, item)).collect();
            items.into_iter().collect::<Option<_>>().map(Var::List)
        }
        DeValue::Table(entries) => {
            let mut read = BTreeMap::new();
            for (key, value) in entries {
                let name = Text { value: key.get_ref(), span: key.span() };
                read.insert(name.value.to_owned(), named(report, &name, value)?);
            }
            Some(Var::Table(read))
        }
        DeValue::Float(_) | DeValue::Datetime(_) => {
            let message = "a variable can't be a decimal number, date or time";
            report.wrong(value.span(), message, "write it as a string, which is put into files as it stands");
            None
        }
    }
}

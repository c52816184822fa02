//! Reads `commands` of image recipes: what is run in an image once its packages and files are there.

use toml::{Spanned, de::DeValue};

use super::{
    error::Placed,
    names::shown,
    reader::{self, Report, Table},
};

/// Most bytes of one command: it travels as an argument, with every special character escaped, and Linux takes 128 KiB
/// (MAX_ARG_STRLEN). Longer ones are files.
const COMMAND_MAX: usize = 16 << 10;
/// The shell that runs a string. It ends at the first line that fails.
const SHELL: [&str; 3] = ["/bin/sh", "-e", "-c"];
/// What a command is.
const WHAT: &str = "an array of strings, each for the shell, or of arrays with a program and its arguments";

/// Reads the commands, each as a program with its arguments.
pub(super) fn read(report: &mut Report, table: &Table<'_>) -> Vec<Placed<Vec<String>>> {
    let Some(value) = table.get("commands") else { return Vec::new() };
    let DeValue::Array(items) = value.get_ref() else {
        table.wrong_type(report, "commands", WHAT, value);
        return Vec::new();
    };
    let mut commands = Vec::new();
    for item in items {
        if let Some(arguments) = command(report, table, item) {
            commands.push(Placed { value: arguments, place: report.place(item.span()) });
        }
    }
    commands
}

fn command(report: &mut Report, table: &Table<'_>, item: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
    let words: Vec<&str> = match item.get_ref() {
        DeValue::String(text) => vec![text],
        DeValue::Array(words) => {
            if let Some(word) = words.iter().find(|word| !word.get_ref().is_str()) {
                table.wrong_type(report, "commands", WHAT, word);
                return None;
            }
            words.iter().filter_map(|word| reader::text(word).map(|text| text.value)).collect()
        }
        _ => {
            table.wrong_type(report, "commands", WHAT, item);
            return None;
        }
    };
    let is_text = item.get_ref().is_str();
    let first = words.first().map_or("", |word| word.trim());
    let length: usize = words.iter().map(|word| word.len()).sum();
    let mut wrong = |message: String, hint: &str| {
        report.wrong(item.span(), message, hint);
        None
    };
    if first.is_empty() {
        return wrong("an empty command stands here".to_owned(), "leave it out");
    }
    if is_text && first.starts_with('-') {
        let message = format!("`{}` is no command", shown(first));
        return wrong(
            message,
            r#"a program with its arguments is an array of its own: `commands = [["sh", "-c", "date"]]`"#,
        );
    }
    if length > COMMAND_MAX {
        return wrong(
            format!("the command has more than {COMMAND_MAX} bytes"),
            "put it into a script by `[[files]]`, and run that",
        );
    }
    if words.iter().any(|word| word.contains('\0')) {
        return wrong("the command has a NUL character".to_owned(), "programs can't be given one");
    }
    let shell = if is_text { &SHELL[..] } else { &[] };
    Some(shell.iter().chain(&words).map(|word| (*word).to_owned()).collect())
}

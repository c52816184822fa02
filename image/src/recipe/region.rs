//! Reads `timezone` and `locale` of image recipes. Which ones there are, the image's packages decide, so that is looked
//! at when it is built. Follows the names of the IANA time zone database and setlocale(3).

use super::{
    error::Placed,
    names::shown,
    reader::{Report, Table},
};

/// Longest name of either; the longest time zone has 32.
const NAME_MAX: usize = 64;

/// The time zone, if there is one.
pub(super) fn timezone(report: &mut Report, table: &Table<'_>) -> Option<Placed<String>> {
    let text = table.text(report, "timezone")?;
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte);
    let part = |part: &str| !part.is_empty() && part.bytes().all(inside);
    if text.value.len() <= NAME_MAX && text.value.split('/').all(part) {
        return Some(report.placed(&text));
    }
    let message = format!("`{}` can't be the name of a time zone", shown(text.value));
    report.wrong(text.span, message, "as in the IANA time zone database, for example `Europe/Berlin`");
    None
}

/// The locale, if there is one.
pub(super) fn locale(report: &mut Report, table: &Table<'_>) -> Option<Placed<String>> {
    let text = table.text(report, "locale")?;
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"_@.-".contains(&byte);
    let right = text.value.starts_with(|first: char| first.is_ascii_alphabetic());
    if !right || text.value.len() > NAME_MAX || !text.value.bytes().all(inside) {
        let message = format!("`{}` can't be the name of a locale", shown(text.value));
        report.wrong(text.span, message, "for example `de_DE.UTF-8`, or `C.UTF-8`, which every image has");
        return None;
    }
    if let Some((name, charset)) = text.value.split_once('.')
        && charset.split('@').next() != Some("UTF-8")
    {
        let message = format!("`{}` is not a locale of UTF-8", shown(text.value));
        report.wrong(text.span, message, format!("write `{name}.UTF-8`: all else in a guest is UTF-8"));
        return None;
    }
    Some(report.placed(&text))
}

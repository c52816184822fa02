//! What the screen shows, as lines of styled text: everything a person before the rack needs, drawn from the status
//! that the API gives. Nothing here touches a terminal.

use std::fmt::Write;

use rackstick_api::rack::{Guest, State, Status};

use super::text::{duration, plain, wrap};

/// Where what a row says begins, behind the row's name.
const INDENT: usize = 12;
/// Smaller terminals are drawn as if they were this large; what does not fit is cut by the terminal.
const LEAST: Size = Size { columns: 40, rows: 14 };
/// Problems and activities may fill this part of the rows each, so that the guests are seen too: one in this many.
const SHARE: usize = 4;
/// Lines that one guest's detail may fill where there is room.
const DETAIL_LINES: usize = 3;

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

impl Size {
    fn usable(self) -> Self {
        Self { columns: self.columns.max(LEAST.columns), rows: self.rows.max(LEAST.rows) }
    }
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    #[default]
    Plain,
    /// The bar at the top.
    Bar,
    /// The name of a row.
    Name,
    Good,
    Attention,
    Bad,
    Faint,
}

/// A piece of a line. Its text is printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub style: Style,
    pub text: String,
}

/// One line of the screen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line(pub Vec<Span>);

impl Line {
    fn of(style: Style, text: impl Into<String>) -> Self {
        Self::default().and(style, text)
    }

    fn and(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push(Span { style, text: text.into() });
        self
    }
}

/// The screen of a daemon that has no status yet, or has come to its end: one thing to say.
pub fn notice(about: &str, what: &str, style: Style, size: Size) -> Vec<Line> {
    let size = size.usable();
    let mut lines = vec![bar("rackstick", "", size), Line::default()];
    lines.extend(row(about, &[(plain(what), style)], size));
    lines
}

/// The screen of a rack. `silent_s`: for how many seconds the main loop has not answered, if it should have.
pub fn overview(status: &Status, silent_s: Option<u64>, size: Size) -> Vec<Line> {
    let size = size.usable();
    let title = format!("{} {}", plain(&status.rack), plain(&status.version));
    let mut lines = vec![bar(&title, &format!("up {}", duration(status.uptime_s)), size), Line::default()];

    let addresses = status.addresses.iter().map(|(name, address)| plain(&format!("{address} on {name}")));
    let mut addresses: Vec<_> = addresses.map(|text| (text, Style::Plain)).collect();
    if addresses.is_empty() {
        addresses.push(("none yet".into(), Style::Attention));
    }
    lines.extend(row("Address", &addresses, size));

    let limit = size.rows / SHARE;
    let mut problems: Vec<_> = status.problems.iter().map(|problem| (plain(problem), Style::Bad)).collect();
    if let Some(seconds) = silent_s {
        let text = format!("the daemon has not answered for {}; it is started again if it stays so", duration(seconds));
        problems.insert(0, (text, Style::Bad));
    }
    lines.extend(few(row("Wrong", &problems, size), limit));

    let activity = |what: &str, seconds| (format!("{}, {}", plain(what), duration(seconds)), Style::Attention);
    let activities: Vec<_> =
        status.activities.iter().map(|activity_| activity(&activity_.what, activity_.for_s)).collect();
    lines.extend(few(row("Now", &activities, size), limit));

    lines.push(Line::default());
    let keys = [
        Line::default(),
        Line::of(Style::Faint, " F2 log   F1 back here   Ctrl-Alt-Del reboots   the power button switches off"),
    ];
    let room = size.rows.saturating_sub(lines.len() + keys.len() + 1);
    lines.push(tally(&status.guests));
    lines.extend(guests(&status.guests, size.columns, room));
    lines.resize(size.rows.saturating_sub(keys.len()), Line::default());
    lines.extend(keys);
    lines
}

/// A bar over the whole width.
fn bar(left: &str, right: &str, size: Size) -> Line {
    let width = size.columns.saturating_sub(2);
    let left: String = left.chars().take(width).collect();
    let space = width.saturating_sub(left.len());
    let right = if right.len() < space { right } else { "" };
    Line::of(Style::Bar, format!(" {left}{right:>space$} "))
}

/// A named row, wrapped where it is too long; none if it has nothing to say.
fn row(name: &str, entries: &[(String, Style)], size: Size) -> Vec<Line> {
    let mut lines = Vec::new();
    for (text, style) in entries {
        for piece in wrap(text, size.columns.saturating_sub(INDENT + 1)) {
            let name = if lines.is_empty() { name } else { "" };
            let head = format!(" {name:<width$}", width = INDENT - 1);
            lines.push(Line::of(Style::Name, head).and(*style, piece));
        }
    }
    lines
}

/// At most `limit` lines, the last of which says how many are missing.
fn few(mut lines: Vec<Line>, limit: usize) -> Vec<Line> {
    if lines.len() > limit {
        let shown = limit.saturating_sub(1);
        let missing = lines.len() - shown;
        lines.truncate(shown);
        lines.push(Line::of(Style::Faint, format!("{:INDENT$}and {missing} lines more", "")));
    }
    lines
}

fn tally(guests: &[Guest]) -> Line {
    let healthy = guests.iter().filter(|guest| guest.healthy).count();
    let style = if healthy == guests.len() { Style::Good } else { Style::Attention };
    let text = if guests.is_empty() {
        "none, the recipe names none".into()
    } else {
        format!("{healthy} of {} healthy", guests.len())
    };
    Line::of(Style::Name, format!(" {:<width$}", "Guests", width = INDENT - 1)).and(style, text)
}

/// How much a guest wants to be seen: what is worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Failed,
    NotHealthy,
    Waiting,
    Stopped,
    Healthy,
}

impl Rank {
    fn of(guest: &Guest) -> Self {
        match guest.state {
            State::Failed => Self::Failed,
            State::Running if guest.healthy => Self::Healthy,
            State::Running => Self::NotHealthy,
            State::Waiting => Self::Waiting,
            State::Stopped => Self::Stopped,
        }
    }

    fn word(self) -> (&'static str, Style) {
        match self {
            Self::Failed => ("failed", Style::Bad),
            Self::NotHealthy => ("running", Style::Attention),
            Self::Waiting => ("waiting", Style::Attention),
            Self::Stopped => ("stopped", Style::Faint),
            Self::Healthy => ("healthy", Style::Good),
        }
    }
}

/// The guests in at most `room` lines: in the recipe's order with all they say if that fits, else the worst first with
/// a line each, and at the end how many are not shown.
fn guests(guests: &[Guest], columns: usize, room: usize) -> Vec<Line> {
    let widest = guests.iter().map(|guest| guest.name.len()).max().unwrap_or(0);
    let all: Vec<Line> = guests.iter().flat_map(|guest| of_guest(guest, widest, columns, DETAIL_LINES)).collect();
    if all.len() <= room {
        return all;
    }
    let mut worst: Vec<&Guest> = guests.iter().collect();
    worst.sort_by_key(|guest| Rank::of(guest));
    let shown = if worst.len() <= room { room } else { room.saturating_sub(1) };
    let hidden = worst.split_off(shown.min(worst.len()));
    let mut lines: Vec<Line> = worst.iter().flat_map(|guest| of_guest(guest, widest, columns, 1)).collect();
    if !hidden.is_empty() {
        let mut text = format!(" and {} more:", hidden.len());
        for rank in [Rank::Failed, Rank::NotHealthy, Rank::Waiting, Rank::Stopped, Rank::Healthy] {
            let count = hidden.iter().filter(|guest| Rank::of(guest) == rank).count();
            if count > 0 {
                // Writing to a string does not fail.
                let _ = write!(text, " {count} {}", rank.word().0);
            }
        }
        lines.push(Line::of(Style::Faint, text));
    }
    lines
}

fn of_guest(guest: &Guest, widest: usize, columns: usize, most: usize) -> Vec<Line> {
    let (word, style) = Rank::of(guest).word();
    let addresses = guest.addresses.values().map(ToString::to_string);
    let mut said: Vec<String> = vec![addresses.collect::<Vec<_>>().join(", "), plain(&guest.detail)];
    if guest.restarts > 0 {
        said.push(format!("restarts: {}", guest.restarts));
    }
    said.retain(|text| !text.is_empty());
    let detail = said.join("; ");
    let head = format!(" {:<widest$}  ", plain(&guest.name));
    let state = format!("{word:<8} ");
    let indent = head.len() + state.len();
    let mut pieces = wrap(&detail, columns.saturating_sub(indent + 1));
    if pieces.len() > most {
        pieces.truncate(most);
        if let Some(last) = pieces.last_mut() {
            last.truncate(columns.saturating_sub(indent + 4));
            last.push_str("...");
        }
    }
    let mut lines = vec![Line::of(Style::Plain, head).and(style, state)];
    for (index, piece) in pieces.into_iter().enumerate() {
        match lines.last_mut() {
            Some(first) if index == 0 => first.0.push(Span { style: Style::Plain, text: piece }),
            _ => lines.push(Line::of(Style::Plain, format!("{:indent$}{piece}", ""))),
        }
    }
    lines
}

#[cfg(test)]
mod tests;

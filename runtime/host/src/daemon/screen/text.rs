//! Text that may have come from anybody, made fit for a terminal.

/// The text as printable ASCII: what could steer a terminal, or looks different on each, becomes a question mark.
pub fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        ' '..='~' => c,
        c if c.is_whitespace() => ' ',
        _ => '?',
    };
    text.chars().map(plain).collect()
}

/// Breaks plain text into lines of at most `width` characters, at spaces where there are some.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let mut word = word;
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
                continue;
            }
            _ => {}
        }
        while word.len() > width {
            let (head, tail) = word.split_at(word.floor_char_boundary(width).max(1));
            lines.push(head.to_owned());
            word = tail;
        }
        lines.push(word.to_owned());
    }
    lines
}

/// A time as people say it, two units at most.
pub fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        ..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min {} s", seconds / MINUTE, seconds % MINUTE),
        HOUR..DAY => format!("{} h {} min", seconds / HOUR, seconds % HOUR / MINUTE),
        DAY.. => format!("{} d {} h", seconds / DAY, seconds % DAY / HOUR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[2J\u{9b}1m\r\n\tb\u{202e}c\u{7f}"), "a?[2J?1m   b?c?");
        assert!(plain(&('\0'..='\u{2fff}').collect::<String>()).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }

    #[test]
    fn long_text_is_broken_at_spaces_and_long_words_anywhere() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert!(wrap("", 10).is_empty());
        assert_eq!(wrap("ab", 0), ["a", "b"]);
    }

    #[test]
    fn a_time_has_two_units_at_most() {
        let said = [0, 59, 60, 3599, 3600, 90_000].map(duration);
        assert_eq!(said, ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h"]);
    }
}

//! The patterns of module aliases: fnmatch(3) without flags, which is what modprobe(8) uses; POSIX.1-2017 XCU 2.13.

/// How many bytes at the start of `pattern` stand for themselves.
pub(super) fn literal_len(pattern: &str) -> usize {
    pattern.find(['*', '?', '[', '\\']).unwrap_or(pattern.len())
}

/// Whether `text` as a whole matches `pattern`: `*` any string, `?` any byte, `[a-z]`, `[!a-z]`, `\x` for x itself.
/// Takes time proportional to the product of both lengths at most, whatever the pattern.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: one byte further in the text. An earlier `*` never
    // has to be tried again, as the last one can take up whatever that one could.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if t == text.len() && p == pattern.len() {
            return true;
        }
        let step = match text.get(t) {
            Some(&byte) => one(&pattern[p..], byte),
            None => return false,
        };
        match (step, retry) {
            (Some(used), _) => (p, t) = (p + used, t + 1),
            (None, Some((after_star, from))) => {
                (p, t) = (after_star, from + 1);
                retry = Some((after_star, from + 1));
            }
            (None, None) => return false,
        }
    }
}

/// How many bytes of `pattern` match `byte`, if they do.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => match bracket(rest, byte) {
            Some((true, used)) => Some(1 + used),
            Some((false, _)) => None,
            // Without its end it is an ordinary character.
            None => (byte == b'[').then_some(1),
        },
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

/// Whether the bracket expression that begins after its `[` holds `byte`, and how long it is with its `]`.
fn bracket(expression: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(expression.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let mut found = false;
    let first = at;
    loop {
        let low = match expression.get(at)? {
            b']' if at > first => return Some((found != negated, at + 1)),
            b'\\' => {
                at += 1;
                *expression.get(at)?
            }
            other => *other,
        };
        at += 1;
        match (expression.get(at), expression.get(at + 1)) {
            (Some(b'-'), Some(high)) if *high != b']' => {
                found |= (low..=*high).contains(&byte);
                at += 2;
            }
            _ => found |= low == byte,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (pattern, text, what fnmatch(3) of glibc 2.36 with flags 0 says).
    const TABLE: &[(&str, &str, bool)] = &[
        ("", "", true),
        ("", "a", false),
        ("a", "", false),
        ("*", "", true),
        ("**", "anything", true),
        ("a*c", "abbbc", true),
        ("a*c", "abbbcd", false),
        ("a*b*c", "axbxbxc", true),
        ("a*b*c", "axcxb", false),
        ("?", "", false),
        ("?", "x", true),
        ("[abc]x", "bx", true),
        ("[!abc]x", "bx", false),
        ("[!abc]x", "dx", true),
        ("[0-9a-f]", "c", true),
        ("[0-9a-f]", "g", false),
        ("[]a]", "]", true),
        ("[!]a]", "]", false),
        ("[a-]", "-", true),
        ("[a", "[a", true),
        ("[a", "a", false),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("pci:v00008086d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", true),
        ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", true),
        ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
        ("virtio:d00000001v*", "virtio:d0000000Bv00001AF4", false),
        ("usb:v0BDAp81[5-9A-F]*d*", "usb:v0BDAp815Ad2000", true),
        ("usb:v0BDAp81[5-9A-F]*d*", "usb:v0BDAp8149d2000", false),
        (
            "cpu:type:x86,ven*fam*mod*:feature:*0081*",
            "cpu:type:x86,ven0002fam000Fmod006B:feature:,0000,0081,0099",
            true,
        ),
        ("acpi*:PNP0C0C:*", "acpi:PNP0C0C:", true),
        ("acpi*:PNP0C0C:*", "acpi:LNXPWRBN:PNP0C0C:", true),
    ];

    #[test]
    fn a_pattern_matches_what_fnmatch_says() {
        for (pattern, text, expected) in TABLE {
            assert_eq!(matches(pattern, text), *expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends_in_time() {
        let pattern = "*a".repeat(2000);
        assert!(!matches(&pattern, &format!("{}b", "a".repeat(20_000))));
    }

    #[test]
    fn the_literal_part_ends_at_the_first_special_character() {
        assert_eq!(literal_len("pci:v00008086d*"), 14);
        assert_eq!(literal_len("fs-erofs"), 8);
        assert_eq!(literal_len("*x"), 0);
    }
}

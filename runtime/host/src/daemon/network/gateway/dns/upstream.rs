//! A query on its way to a resolver: what is sent, and which answer is its own (RFC 5452).

use super::answer::HEAD;

/// A query that is passed on.
pub struct Passed {
    /// As the guest sent it, with a number that the guest does not know.
    pub bytes: Vec<u8>,
    /// The guest's number.
    guests: [u8; 2],
    /// Where the question ends.
    end: usize,
}

impl Passed {
    /// The query with this number; none if it has no question that can be compared.
    pub fn new(query: &[u8], number: u16) -> Option<Self> {
        let end = question_end(query)?;
        let guests = [*query.first()?, *query.get(1)?];
        let mut bytes = query.to_vec();
        bytes.splice(..2, number.to_be_bytes());
        Some(Self { bytes, guests, end })
    }

    /// The answer as the guest is to get it; none if it is not the answer to this query.
    pub fn answer(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let question = answer.get(HEAD..self.end)?;
        let own = self.bytes.get(HEAD..self.end)?;
        let fits = answer.get(..2)? == self.bytes.get(..2)?
            && answer.get(2)? & 0x80 != 0
            && answer.get(4..6)? == [0, 1]
            && question.eq_ignore_ascii_case(own);
        let mut bytes = answer.to_vec();
        bytes.splice(..2, self.guests);
        fits.then_some(bytes)
    }
}

/// Where the only question of a query ends. Compression has no place in it: nothing stands before.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEAD;
    loop {
        match *query.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    // The root, type and class.
    let end = at + 5;
    (query.len() >= end && query.get(4..6)? == [0, 1]).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";

    #[test]
    fn only_the_answer_to_the_same_question_with_the_same_number_is_passed_back() {
        let passed = Passed::new(QUERY, 0xbeef).unwrap();
        assert_eq!(&passed.bytes[..2], b"\xbe\xef");
        let mut answer = passed.bytes.clone();
        assert_eq!(passed.answer(&answer), None, "its own query");
        answer[2] |= 0x80;
        answer.extend(b"records");
        let given = passed.answer(&answer).unwrap();
        assert_eq!((&given[..2], &given[19..]), (&QUERY[..2], &b"records"[..]));
        for (at, what) in [(0, "number"), (13, "name"), (16, "type"), (5, "no question")] {
            let mut other = answer.clone();
            other[at] ^= 0x11;
            assert_eq!(passed.answer(&other), None, "{what}");
        }
        for length in 0..19 {
            assert_eq!(passed.answer(&answer[..length]), None);
            assert!(Passed::new(&QUERY[..length], 1).is_none());
        }
    }

    #[test]
    fn a_question_that_points_or_never_ends_is_not_passed_on() {
        for name in [&b"\xc0\x0c\x00\x01\x00\x01"[..], b"\x3fshort", b"\x40a\x00\x00\x01\x00\x01"] {
            let query = [&QUERY[..12], name].concat();
            assert!(Passed::new(&query, 1).is_none(), "{name:?}");
        }
    }
}

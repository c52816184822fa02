//! Changes to a file, drawn at random: what damages happen to disks, and what somebody does who wants to break a
//! reader.

use fastrand::Rng;

/// Numbers at which sizes and counts overflow, or are compared.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX - 1, u64::MAX];
/// How many changes are made at once, at most.
const MAX_CHANGES: usize = 8;
/// Bytes of a run that is moved, repeated or taken away, at most.
const MAX_RUN: usize = 64;

/// One of the corpus, changed.
pub fn change(random: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..=MAX_CHANGES) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.usize(..bytes.len());
        let run = random.usize(1..=MAX_RUN.min(bytes.len() - at));
        match random.u8(..8) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = random.u8(..),
            2 => number(random, &mut bytes[at..]),
            3 => bytes.truncate(at),
            4 => _ = bytes.drain(at..at + run),
            5 => {
                let repeated = bytes[at..at + run].to_vec();
                bytes.splice(at..at, repeated);
            }
            6 => {
                let other = &corpus[random.usize(..corpus.len())];
                if !other.is_empty() {
                    let from = random.usize(..other.len());
                    let taken = other[from..(from + run).min(other.len())].to_vec();
                    bytes.splice(at..at + run, taken);
                }
            }
            _ => {
                let digit = bytes[at..].iter().position(u8::is_ascii_digit);
                if let Some(place) = digit {
                    bytes[at + place] = b'0' + random.u8(..10);
                }
            }
        }
    }
    bytes
}

/// Writes one of [`NUMBERS`], or one near it, in some width and order.
fn number(random: &mut Rng, bytes: &mut [u8]) {
    let number = NUMBERS[random.usize(..NUMBERS.len())].wrapping_add(random.u64(..3)).wrapping_sub(1);
    let width = [1, 2, 4, 8][random.usize(..4)];
    let mut raw = number.to_le_bytes()[..width].to_vec();
    if random.bool() {
        raw.reverse();
    }
    bytes.iter_mut().zip(raw).for_each(|(byte, new)| *byte = new);
}

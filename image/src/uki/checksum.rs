//! The checksum of PE files, by which a damaged UKI is told from a whole one (`CheckSum`; Microsoft, "PE Format": the
//! algorithm of IMAGHELP.DLL). Sixteen bits catch accidents, not intent.

/// The sum of bytes that arrive in pieces.
#[derive(Debug, Default)]
pub(super) struct Checksum {
    /// Of all words, without carry: 2^48 bytes fit.
    sum: u64,
    /// The first half of a word whose second is to come.
    half: Option<u8>,
    length: u64,
}

impl Checksum {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if let (Some(low), Some((high, rest))) = (self.half, bytes.split_first()) {
            self.half = None;
            self.sum += u64::from(u16::from_le_bytes([low, *high]));
            bytes = rest;
        }
        let words = bytes.chunks_exact(2);
        self.half = self.half.or(words.remainder().first().copied());
        // Never wraps: a check for it at each word would take most of the time.
        let word = |word: &[u8]| u64::from(u16::from_le_bytes([word[0], word[1]]));
        self.sum = words.fold(self.sum, |sum, bytes| sum.wrapping_add(word(bytes)));
    }

    /// The checksum of a file that has zeroes where it is to stand.
    pub(super) fn finish(self) -> u32 {
        let mut sum = self.sum + u64::from(self.half.unwrap_or(0));
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum + self.length) as u32
    }

    /// The checksum of a file that holds `held` in its place, which begins at an even byte.
    pub(super) fn finish_without(mut self, held: u32) -> u32 {
        self.sum = self.sum.saturating_sub(u64::from(held & 0xffff) + u64::from(held >> 16));
        self.finish()
    }
}

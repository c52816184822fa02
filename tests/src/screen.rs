//! What a rack's screen shows, judged without a font: a text is there where cells are alike and differ as its letters
//! do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::qmp::Qmp;

/// Width and height of a character on Linux' text console: the 8x16 font, and the 16x32 font for many pixels.
const CELLS: [(usize, usize); 2] = [(8, 16), (16, 32)];
/// How many letters of a text must be repetitions, so that no other text is taken for it.
const REPETITIONS: usize = 5;

/// A picture of a screen.
#[derive(Debug)]
pub struct Screen {
    /// Where it was kept.
    pub path: PathBuf,
    width: usize,
    height: usize,
    /// Red, green and blue of every pixel, line by line.
    pixels: Vec<[u8; 3]>,
}

impl Screen {
    /// Takes a picture, and keeps it as `<path>.png`.
    pub(crate) fn take(qmp: &mut Qmp, path: &Path) -> Self {
        let (png, ppm) = (path.with_extension("png"), path.with_extension("ppm"));
        // The PNG is for people. What is judged is QEMU's own format, which needs no decoder.
        qmp.execute("screendump", json!({ "filename": ppm }));
        qmp.execute("screendump", json!({ "filename": png, "format": "png" }));
        let bytes = fs::read(&ppm).unwrap_or_else(|error| panic!("can't read {}: {error}", ppm.display()));
        fs::remove_file(&ppm).expect("what was made can be removed");
        Self::parse(&bytes, png).expect("QEMU writes a PPM picture")
    }

    /// Reads a picture in binary PPM: "P6", width, height, the greatest value, then three bytes for each pixel.
    fn parse(bytes: &[u8], path: PathBuf) -> Option<Self> {
        let mut rest = bytes;
        let mut word = || {
            let (word, after) = rest.split_at(rest.iter().position(u8::is_ascii_whitespace)?);
            rest = after.get(1..)?;
            std::str::from_utf8(word).ok()
        };
        let header = [word()?, word()?, word()?, word()?];
        let ["P6", width, height, "255"] = header else { return None };
        let (width, height): (usize, usize) = (width.parse().ok()?, height.parse().ok()?);
        let pixels: Vec<_> = rest.chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        (width > 0 && pixels.len() == width.checked_mul(height)?).then_some(Self { path, width, height, pixels })
    }

    /// Whether every pixel has the same colour.
    pub fn is_blank(&self) -> bool {
        self.pixels.iter().all(|pixel| *pixel == self.pixels[0])
    }

    /// Whether `text` stands in one line of the text console. It must repeat some of its letters; spaces count.
    #[track_caller]
    pub fn shows(&self, text: &str) -> bool {
        let letters: Vec<char> = text.chars().collect();
        let distinct: BTreeSet<&char> = letters.iter().collect();
        assert!(letters.len() - distinct.len() >= REPETITIONS, "`{text}` could be mistaken for another text");
        CELLS
            .into_iter()
            .any(|cell| self.lines(cell).any(|line| line.windows(letters.len()).any(|cells| fits(cells, &letters))))
    }

    /// The console's lines, each a list of cells: which pixels of it are unlike its first one.
    fn lines(&self, (width, height): (usize, usize)) -> impl Iterator<Item = Vec<Vec<bool>>> {
        let cell = move |left: usize, top: usize| {
            let pixel = move |x, y| self.pixels[y * self.width + x];
            let rows = top..top + height;
            rows.flat_map(|y| (left..left + width).map(move |x| pixel(x, y) != pixel(left, top))).collect()
        };
        let columns = self.width / width;
        (0..self.height / height)
            .map(move |line| (0..columns).map(|column| cell(column * width, line * height)).collect())
    }
}

/// Whether equal letters have equal cells, different ones different cells, and spaces empty ones.
fn fits(cells: &[Vec<bool>], letters: &[char]) -> bool {
    let (mut cell_of, mut letter_of) = (BTreeMap::new(), BTreeMap::new());
    cells.iter().zip(letters).all(|(cell, letter)| {
        let empty = !cell.contains(&true);
        (*letter == ' ') == empty
            && *cell_of.entry(letter).or_insert(cell) == cell
            && *letter_of.entry(cell).or_insert(letter) == letter
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_qemu_is_read() {
        let screen = Screen::parse(b"P6\n2 1\n255\n\x01\x02\x03\x0a\x0b\x0c", PathBuf::new()).unwrap();
        assert_eq!((screen.width, screen.height, &screen.pixels[..]), (2, 1, &[[1, 2, 3], [10, 11, 12]][..]));
        for bad in [&b"P6\n2 1\n255\n\x01"[..], b"P6\n2 1", b"P5\n0 0\n255\n", b""] {
            assert!(Screen::parse(bad, PathBuf::new()).is_none());
        }
    }

    /// A screen with a text in a font of our own: a letter's bits are its pixels.
    fn screen(text: &str) -> Screen {
        let (width, height) = (640, 32);
        let mut pixels = vec![[0, 0, 0]; width * height];
        for (column, letter) in text.chars().enumerate().filter(|(_, letter)| *letter != ' ') {
            for bit in (0..8).filter(|bit| letter as u32 >> bit & 1 == 1) {
                pixels[(16 + 3 + bit) * width + column * 8 + 2] = [200, 200, 200];
            }
        }
        Screen { path: PathBuf::new(), width, height, pixels }
    }

    #[test]
    fn a_text_on_the_screen_is_found_wherever_it_stands_and_no_other_one() {
        let said = "[   86.652] rackstick: 2/2 guests healthy";
        assert!(screen(said).shows("2/2 guests healthy"));
        assert!(!screen(&said.replace("2/2", "1/2")).shows("2/2 guests healthy"));
        assert!(!screen(&said.replace("healthy", "waiting")).shows("2/2 guests healthy"));
        assert!(!screen("").shows("2/2 guests healthy"));
        assert!(screen("").is_blank() && !screen(said).is_blank());
    }
}

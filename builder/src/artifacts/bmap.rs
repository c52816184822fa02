//! `<image>.bmap`: which blocks of the image must be written, with their hashes, for bmap-tools (format 2.0, which
//! stands in each such file's own comment). Not the holes of the image's file, but all that its file systems use: see
//! `rackstick_image::used`.

use std::{fmt::Write, fs::File, io, ops::Range, os::unix::fs::FileExt};

use rackstick_image::{
    disk::Growing,
    used::{UNIT, Used},
};
use sha2::{Digest, Sha256};

use crate::parallel;

/// The longest range, in bytes: what is hashed at once, and what damage can be narrowed down to.
const RANGE: u64 = 16 << 20;
/// Bytes read at once.
const STEP: u64 = 1 << 20;
/// The file's own hash is made while this stands in its place.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The file's text, of an image whose ranges are hashed as soon as they are there.
pub fn text(image: &Growing, used: &Used, jobs: usize) -> io::Result<String> {
    let ranges: Vec<Range<u64>> = used.ranges.iter().flat_map(split).collect();
    // To hash the whole image takes longest.
    let hashes = parallel::each_behind(jobs, &ranges, |range| {
        image.wait_for(range.end)?;
        hash(&image.file, range)
    });
    let hashes = hashes.into_iter().collect::<io::Result<Vec<String>>>()?;
    let mut map = String::new();
    for (range, hash) in ranges.iter().zip(hashes) {
        let (first, last) = (range.start / UNIT, (range.end - 1) / UNIT);
        let blocks = if first == last { first.to_string() } else { format!("{first}-{last}") };
        // Writing to a string does not fail.
        _ = writeln!(map, "        <Range chksum=\"{hash}\"> {blocks} </Range>");
    }
    let mapped: u64 = ranges.iter().map(|range| (range.end - range.start).div_ceil(UNIT)).sum();
    let text = format!(
        "<?xml version=\"1.0\" ?>\n\
         <!-- Which blocks of the disk image must be written, and their SHA-256. A block that is not listed is one that the\n\
         \x20    image's file systems call free: whatever the disk holds there may stay. BmapFileChecksum is the SHA-256 of this\n\
         \x20    file with zeroes in its place. -->\n\
         <bmap version=\"2.0\">\n\
         \x20   <ImageSize> {size} </ImageSize>\n\
         \x20   <BlockSize> {UNIT} </BlockSize>\n\
         \x20   <BlocksCount> {blocks} </BlocksCount>\n\
         \x20   <MappedBlocksCount> {mapped} </MappedBlocksCount>\n\
         \x20   <ChecksumType> sha256 </ChecksumType>\n\
         \x20   <BmapFileChecksum> {NO_HASH} </BmapFileChecksum>\n\
         \x20   <BlockMap>\n{map}    </BlockMap>\n\
         </bmap>\n",
        size = used.size,
        blocks = used.size.div_ceil(UNIT),
    );
    let own = format!("{:x}", Sha256::digest(&text));
    Ok(text.replacen(NO_HASH, &own, 1))
}

fn split(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(RANGE as usize).map(move |at| at..(at + RANGE).min(end))
}

fn hash(image: &File, range: &Range<u64>) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; STEP as usize];
    for at in range.clone().step_by(STEP as usize) {
        let bytes = &mut buffer[..(range.end - at).min(STEP) as usize];
        image.read_exact_at(bytes, at)?;
        hasher.update(bytes);
    }
    Ok(format!("{:x}", hasher.finalize()))
}

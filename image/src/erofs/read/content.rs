//! What is in a file of a layer, compressed or not. An extent is unpacked when it is asked for, and none that is larger
//! than the writer's; so what a layer says of sizes decides how long reading takes, never how much memory.

use std::{fmt, io::Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{
    super::{
        BLOCK_SIZE,
        format::{CLUSTER_SIZE, Cluster, EXTENT_SIZE},
    },
    BLOCK, OUTSIDE, word,
};
use crate::view::{ReadError, View, ensure};

/// Most entries of the index that one extent has.
const CLUSTERS: usize = EXTENT_SIZE / BLOCK_SIZE;
/// Largest window of a zstd frame: one that asks for more would have gigabytes allocated. The kernel is promised no
/// larger one.
const MAX_WINDOW: u64 = EXTENT_SIZE as u64;

/// What is in a file or link.
#[derive(Debug, Clone)]
pub struct Content<'a> {
    pub(super) length: u64,
    pub(super) place: Place<'a>,
}

/// Where it is.
#[derive(Debug, Clone)]
pub(super) enum Place<'a> {
    Plain(View<'a>),
    /// Extents that follow each other from the first one's block on.
    Compressed {
        layer: View<'a>,
        /// Where its index begins, which has an entry for each block of the file and is within the layer.
        index: u64,
        /// How many blocks all extents have.
        blocks: u32,
    },
}

impl<'a> Content<'a> {
    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Where it lies if it is not compressed.
    pub fn plain(&self) -> Option<&View<'a>> {
        match &self.place {
            Place::Plain(view) => Some(view),
            Place::Compressed { .. } => None,
        }
    }

    /// All of it, if it is not longer than `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn bytes(&self, limit: u64) -> Result<Vec<u8>, ReadError> {
        ensure(self.length <= limit, 0, "it is larger than such a file can be")?;
        let (mut bytes, mut pieces) = (Vec::new(), self.pieces());
        while let Some(piece) = pieces.next_piece()? {
            bytes.extend_from_slice(piece);
        }
        Ok(bytes)
    }

    /// Reads it from beginning to end.
    pub fn pieces(&self) -> Pieces<'_, 'a> {
        Pieces { content: self, at: 0, blocks: 0..0, piece: Vec::new(), unpacker: None }
    }
}

/// See [`Content::pieces`].
pub struct Pieces<'c, 'a> {
    content: &'c Content<'a>,
    /// Of the next piece, in the file.
    at: u64,
    /// Blocks of the layer from the next extent's to the last one's end; none before the first.
    blocks: std::ops::Range<u64>,
    piece: Vec<u8>,
    unpacker: Option<Box<FrameDecoder>>,
}

impl fmt::Debug for Pieces<'_, '_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Pieces").field("content", self.content).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Pieces<'_, '_> {
    /// The next 128 KiB, fewer only at the end; then none.
    ///
    /// # Errors
    /// [`ReadError`]; its place counts from the begin of the layer or, of a file that is not compressed, of the file.
    pub fn next_piece(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let length = (self.content.length - self.at).min(EXTENT_SIZE as u64) as usize;
        if length == 0 {
            return Ok(None);
        }
        match &self.content.place {
            Place::Plain(view) => {
                self.piece.resize(length, 0);
                view.read_at(&mut self.piece, self.at)?;
            }
            Place::Compressed { layer, index, blocks } => self.extent(layer, *index, *blocks, length)?,
        }
        self.at += length as u64;
        Ok(Some(&self.piece))
    }

    /// Reads the extent at `at`, which must be as the writer makes them and lie behind the one before: so no two of a
    /// file have the same blocks.
    fn extent(&mut self, layer: &View<'_>, index: u64, blocks: u32, length: usize) -> Result<(), ReadError> {
        let count = length.div_ceil(BLOCK_SIZE);
        let mut entries = [0; CLUSTERS * CLUSTER_SIZE];
        let entries = &mut entries[..count * CLUSTER_SIZE];
        let at = index + self.at / BLOCK * CLUSTER_SIZE as u64;
        layer.read_at(entries, at)?;
        let require = |holds, what| ensure(holds, at, what);

        let (packed, block) = (entries[0] != 0, word(entries, 4));
        let used = match entries.get(CLUSTER_SIZE..) {
            _ if !packed => count,
            Some(&[2, _, _, _, low, ..]) => usize::from(low),
            // The extent ends within its second block.
            _ => 1,
        };
        require(!packed || (1..count).contains(&used), "a compressed extent is not smaller than what is in it")?;
        let end = (u64::from(block) + used as u64) * BLOCK;
        require(end <= layer.length(), OUTSIDE)?;
        let right = Cluster::of_extent(length, block, used as u8).flat_map(Cluster::bytes);
        require(right.eq(entries.iter().copied()), "the index of a compressed file is damaged")?;

        let block = u64::from(block);
        if self.at == 0 {
            self.blocks = block..block + u64::from(blocks);
        }
        require(self.blocks.start == block, "a compressed file's extents do not follow each other")?;
        self.blocks.start += used as u64;
        let is_last = self.at + length as u64 == self.content.length;
        let fits = if is_last { self.blocks.start == self.blocks.end } else { self.blocks.start < self.blocks.end };
        require(fits, "a compressed file has other blocks than it says")?;

        self.piece.resize(length, 0);
        if !packed {
            return layer.read_at(&mut self.piece, block * BLOCK);
        }
        let mut frame = vec![0; used * BLOCK_SIZE];
        layer.read_at(&mut frame, block * BLOCK)?;
        // What fills the first block up stands before the data.
        let padding = frame.iter().take(BLOCK_SIZE).take_while(|byte| **byte == 0).count();
        let unpacked = self.unpack(&frame[padding..]);
        ensure(unpacked.is_some(), block * BLOCK, "what a compressed extent holds is damaged")
    }

    /// Unpacks one frame, which must fill the piece; none if it does not.
    fn unpack(&mut self, mut frame: &[u8]) -> Option<()> {
        let unpacker = self.unpacker.get_or_insert_with(|| {
            let mut unpacker = FrameDecoder::new();
            unpacker.set_max_window_size(MAX_WINDOW);
            Box::new(unpacker)
        });
        unpacker.init(&mut frame).ok()?;
        // The kernel compares both with what comes out. The writer gives each frame its size, and no checksum.
        if unpacker.content_size() != self.piece.len() as u64 {
            return None;
        }
        // Blocks of a few bytes that unpack to 128 KiB each are not unpacked without end.
        let most = BlockDecodingStrategy::UptoBytes(self.piece.len() + 1);
        let finished = unpacker.decode_blocks(&mut frame, most).ok()?;
        let right = finished
            && frame.is_empty()
            && unpacker.get_checksum_from_data().is_none()
            && unpacker.can_collect() == self.piece.len();
        (right && unpacker.read_exact(&mut self.piece).is_ok()).then_some(())
    }
}

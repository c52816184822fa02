//! What is different between two layers, file by file, but for times.

use std::{cmp::Ordering, iter::Peekable};

use rackstick_image::{
    erofs::read::{Content, Inode, Kind, Layer, Walk},
    view::{ReadError, View},
};

/// Bytes compared at once.
const PIECE: u64 = 1 << 18;

/// A file that is not the same in both.
#[derive(Debug, Clone)]
pub struct Difference {
    /// From the root, without a slash before it.
    pub path: Vec<u8>,
    /// What the second has, or else the first.
    pub inode: Inode,
    /// How.
    pub how: How,
}

/// How a file is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Only the first has it.
    Gone,
    /// Only the second has it.
    New,
    /// Both have it; at least one part differs.
    Changed(Vec<Part>),
}

/// What of a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What it is; then nothing else is compared.
    Kind,
    /// Its bytes: how many there were, how many there are.
    Content(u64, u64),
    /// Where a symlink leads.
    Target,
    /// Permission bits.
    Mode(u16, u16),
    /// User and group.
    Owner((u32, u32), (u32, u32)),
    /// Extended attributes.
    Xattrs,
}

/// Two layers of which at least one is there.
pub struct Pair<'l, 'a> {
    /// The first.
    pub a: Option<&'l Layer<'a>>,
    /// The second.
    pub b: Option<&'l Layer<'a>>,
}

type Steps<'l, 'a> = Peekable<std::iter::Flatten<std::option::IntoIter<Walk<'l, 'a>>>>;

impl<'l, 'a> Pair<'l, 'a> {
    /// Their differences by path, and how many more names differ in nothing but their time. Both walks go side by side,
    /// so that neither layer is in memory.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn compare(&self) -> Result<(Vec<Difference>, usize), ReadError> {
        let walk =
            |layer: Option<&'l Layer<'a>>| -> Steps<'l, 'a> { layer.map(Layer::walk).into_iter().flatten().peekable() };
        let (mut left, mut right) = (walk(self.a), walk(self.b));
        let (mut found, mut times) = (Vec::new(), 0);
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Ok((found, times)),
                (Some(Ok((was, _))), Some(Ok((is, _)))) => {
                    was.split(|byte| *byte == b'/').cmp(is.split(|byte| *byte == b'/'))
                }
                (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
                (None, Some(_)) | (_, Some(Err(_))) => Ordering::Greater,
            };
            let was = if order == Ordering::Greater { None } else { left.next().transpose()? };
            let is = if order == Ordering::Less { None } else { right.next().transpose()? };
            match (was, is) {
                (Some((path, was)), Some((_, is))) => {
                    let parts = self.parts(&was, &is)?;
                    if parts.is_empty() {
                        times += usize::from(was.mtime != is.mtime);
                    } else {
                        found.push(Difference { path, inode: is, how: How::Changed(parts) });
                    }
                }
                (Some((path, inode)), None) => found.push(Difference { path, inode, how: How::Gone }),
                (None, Some((path, inode))) => found.push(Difference { path, inode, how: How::New }),
                (None, None) => {}
            }
        }
    }

    fn parts(&self, was: &Inode, is: &Inode) -> Result<Vec<Part>, ReadError> {
        let (Some(a), Some(b)) = (self.a, self.b) else { return Ok(Vec::new()) };
        if was.kind != is.kind {
            return Ok(vec![Part::Kind]);
        }
        let mut parts = Vec::new();
        let has_content = matches!(is.kind, Kind::File | Kind::Symlink);
        if has_content && !same_content(&a.content(was)?, &b.content(is)?)? {
            parts.push(if is.kind == Kind::File { Part::Content(was.size, is.size) } else { Part::Target });
        }
        if was.mode != is.mode {
            parts.push(Part::Mode(was.mode, is.mode));
        }
        if (was.uid, was.gid) != (is.uid, is.gid) {
            parts.push(Part::Owner((was.uid, was.gid), (is.uid, is.gid)));
        }
        if a.xattrs(was)? != b.xattrs(is)? {
            parts.push(Part::Xattrs);
        }
        Ok(parts)
    }
}

/// Whether both have the same bytes, compressed or not.
fn same_content(a: &Content<'_>, b: &Content<'_>) -> Result<bool, ReadError> {
    if a.length() != b.length() {
        return Ok(false);
    }
    let (mut left, mut right) = (a.pieces(), b.pieces());
    loop {
        match (left.next_piece()?, right.next_piece()?) {
            (None, None) => return Ok(true),
            (a, b) if a != b => return Ok(false),
            _ => {}
        }
    }
}

/// Whether both have the same bytes.
///
/// # Errors
/// [`ReadError`].
pub fn same(a: &View<'_>, b: &View<'_>) -> Result<bool, ReadError> {
    if a.length() != b.length() {
        return Ok(false);
    }
    let length = a.length().min(PIECE) as usize;
    let (mut left, mut right) = (vec![0; length], vec![0; length]);
    let mut at = 0;
    while at < a.length() {
        let here = (a.length() - at).min(PIECE) as usize;
        a.read_at(&mut left[..here], at)?;
        b.read_at(&mut right[..here], at)?;
        if left[..here] != right[..here] {
            return Ok(false);
        }
        at += here as u64;
    }
    Ok(true)
}

//! Extended attributes: their inline form on disk (`struct erofs_xattr_ibody_header`), and what a build's own traces in
//! them become in a layer: overlayfs' private marks and file capabilities made inside a user namespace.

use std::collections::BTreeMap;

use super::format::{XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};

/// `EROFS_XATTR_INDEX_*`, by prefix; the two ACLs are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// Largest inline area of one inode: `i_xattr_icount` is 16 bits wide and counts 4-byte units after the header, plus
/// one.
const MAX_AREA: usize = XATTR_HEADER_SIZE + 4 * (u16::MAX as usize - 1);

/// `XATTR_NAME_CAPS`.
const CAPABILITY: &[u8] = b"security.capability";
/// Labels that belong to the machine that builds, not to the layer. `security.SMACK64` is a prefix.
const MACHINE_LABELS: [&[u8]; 5] =
    [b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm", b"security.apparmor"];

/// Why an attribute cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// No prefix that EROFS knows.
    #[error("extended attribute `{0}` cannot be stored: EROFS knows user., trusted., security. and system.posix_acl_*")]
    Name(String),
    /// The value is longer than the format can say, or than Linux allows.
    #[error("extended attribute `{name}` cannot be stored: its value has {length} bytes, 65535 are possible")]
    Value {
        /// Full name.
        name: String,
        /// Length of the value in bytes.
        length: usize,
    },
    /// All attributes together are too long.
    #[error("extended attributes of {length} bytes in all cannot be stored: {MAX_AREA} are possible for one inode")]
    Area {
        /// Bytes needed.
        length: usize,
    },
    /// An overlay mark whose meaning depends on the lower layers' paths or inodes.
    #[error(
        "`{name}` cannot be carried over into a layer: build on an overlay mounted with redirect_dir=off,metacopy=off"
    )]
    Overlay {
        /// Full name.
        name: String,
    },
    /// Capabilities in a form that Linux does not have.
    #[error(
        "security.capability holds no file capabilities (struct vfs_cap_data): {length} bytes starting with {magic:#010x}"
    )]
    Capability {
        /// Length of the value in bytes.
        length: usize,
        /// Its first four bytes.
        magic: u32,
    },
}

/// The inline area: header and entries, or nothing where there are no attributes.
pub(super) fn encode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, XattrError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut area = vec![0; XATTR_HEADER_SIZE];
    for (name, value) in xattrs {
        let (index, suffix) = split(name)?;
        let Ok(value_size) = u16::try_from(value.len()) else {
            return Err(XattrError::Value { name: name.escape_ascii().to_string(), length: value.len() });
        };
        area.reserve(XATTR_ENTRY_SIZE + suffix.len() + value.len() + 3);
        area.extend_from_slice(&[suffix.len() as u8, index]);
        area.extend_from_slice(&value_size.to_le_bytes());
        area.extend_from_slice(suffix);
        area.extend_from_slice(value);
        area.resize(area.len().next_multiple_of(4), 0);
    }
    if area.len() > MAX_AREA {
        return Err(XattrError::Area { length: area.len() });
    }
    Ok(area)
}

/// What [`encode`] wrote; none if the area is damaged, or shares attributes with other inodes, which no layer of ours
/// does.
pub(super) fn decode(area: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut xattrs = BTreeMap::new();
    if area.is_empty() {
        return Some(xattrs);
    }
    let (header, mut rest) = area.split_at_checked(XATTR_HEADER_SIZE)?;
    if header.iter().any(|byte| *byte != 0) {
        return None;
    }
    while !rest.is_empty() {
        let (entry, names) = rest.split_at_checked(XATTR_ENTRY_SIZE)?;
        let (suffix, index) = (usize::from(entry[0]), entry[1]);
        let value = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
        let (prefix, _) = PREFIXES.iter().find(|(_, known)| *known == index)?;
        let name = [*prefix, names.get(..suffix)?].concat();
        xattrs.insert(name, names.get(suffix..suffix + value)?.to_vec());
        rest = rest.get((XATTR_ENTRY_SIZE + suffix + value).next_multiple_of(4)..)?;
    }
    Some(xattrs)
}

/// `i_xattr_icount` of an area of this many bytes.
pub(super) fn icount(area: &[u8]) -> u16 {
    match area.len() {
        0 => 0,
        // Fits: `encode` keeps areas within MAX_AREA.
        length => ((length - XATTR_HEADER_SIZE) / 4 + 1) as u16,
    }
}

fn split(name: &[u8]) -> Result<(u8, &[u8]), XattrError> {
    for (prefix, index) in PREFIXES {
        if let Some(suffix) = name.strip_prefix(prefix) {
            let whole_name = !prefix.ends_with(b".");
            if suffix.is_empty() == whole_name && suffix.len() <= usize::from(u8::MAX) {
                return Ok((index, suffix));
            }
        }
    }
    Err(XattrError::Name(name.escape_ascii().to_string()))
}

/// An attribute's full name and its value.
type Attribute = (Vec<u8>, Vec<u8>);

/// What an attribute of an overlay's upper directory becomes: `None` where it is dropped.
pub(super) fn from_overlay(name: Vec<u8>, value: Vec<u8>) -> Result<Option<Attribute>, XattrError> {
    let private = name.strip_prefix(b"user.overlay.").or_else(|| name.strip_prefix(b"trusted.overlay."));
    match private {
        None => Ok(Some((name, value))),
        // Marks a directory that hides the lower one; "x" would mean whiteouts in attributes, which only nested
        // overlays make.
        Some(b"opaque") if value == b"y" => Ok(Some((b"trusted.overlay.opaque".to_vec(), value))),
        // They point into the lower layers of the build's own mount and are rebuilt by a mount that needs them.
        Some(b"origin" | b"impure" | b"uuid" | b"nlink" | b"upper") => Ok(None),
        Some(_) => Err(XattrError::Overlay { name: name.escape_ascii().to_string() }),
    }
}

/// What an attribute that an archive names becomes in a layer: its value, or `None` where no layer carries it. Those
/// are labels of the machine that packed it, overlayfs' private marks (everything `trusted.`), and names that EROFS has
/// no place for.
pub fn from_archive(name: &[u8], value: Vec<u8>) -> Result<Option<Vec<u8>>, XattrError> {
    let private = name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") || is_machine_label(name);
    if private || name.contains(&0) || split(name).is_err() {
        return Ok(None);
    }
    if value.len() > usize::from(u16::MAX) {
        return Err(XattrError::Value { name: name.escape_ascii().to_string(), length: value.len() });
    }
    without_root_id(name, value).map(Some)
}

/// Whether the attribute describes the building machine rather than the file.
pub(super) fn is_machine_label(name: &[u8]) -> bool {
    MACHINE_LABELS.iter().any(|label| name.starts_with(label))
}

/// Turns file capabilities bound to a user namespace's root (version 3) into plain ones (version 2); leaves others
/// alone. Linux, include/uapi/linux/capability.h, `struct vfs_ns_cap_data`.
pub(super) fn without_root_id(name: &[u8], value: Vec<u8>) -> Result<Vec<u8>, XattrError> {
    const REVISION_MASK: u32 = 0xff00_0000;
    const REVISION_1: u32 = 0x0100_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    const SIZE_1: usize = 12;
    const SIZE_2: usize = 20;
    const SIZE_3: usize = 24;
    if name != CAPABILITY {
        return Ok(value);
    }
    let magic = value.first_chunk().map_or(0, |magic| u32::from_le_bytes(*magic));
    match (magic & REVISION_MASK, value.len()) {
        (REVISION_1, SIZE_1) | (REVISION_2, SIZE_2) => Ok(value),
        (REVISION_3, SIZE_3) => {
            let mut plain = value;
            plain.truncate(SIZE_2);
            plain[..4].copy_from_slice(&(magic & !REVISION_MASK | REVISION_2).to_le_bytes());
            Ok(plain)
        }
        (_, length) => Err(XattrError::Capability { length, magic }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_namespace_become_plain_ones() {
        // cap_net_raw=ep, as `setcap` writes it inside a namespace whose root is 100000 outside.
        let mut v3 = vec![1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v2 = v3.clone();
        v2[3] = 2;
        v3.extend(100_000_u32.to_le_bytes());
        assert_eq!(without_root_id(CAPABILITY, v3).unwrap(), v2);
        assert_eq!(without_root_id(CAPABILITY, v2.clone()).unwrap(), v2);
        assert_eq!(without_root_id(b"user.x", vec![3]).unwrap(), [3]);
        for bad in [&[][..], &[5; 24], &v2[..19]] {
            assert!(without_root_id(CAPABILITY, bad.to_vec()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn overlay_marks_are_kept_dropped_or_refused_but_never_misread() {
        let kept = from_overlay(b"user.overlay.opaque".to_vec(), b"y".to_vec()).unwrap();
        assert_eq!(kept, Some((b"trusted.overlay.opaque".to_vec(), b"y".to_vec())));
        assert_eq!(from_overlay(b"user.overlay.origin".to_vec(), vec![0; 29]).unwrap(), None);
        for bad in [&b"user.overlay.redirect"[..], b"user.overlay.metacopy", b"trusted.overlay.new-in-7.0"] {
            assert!(matches!(from_overlay(bad.to_vec(), Vec::new()), Err(XattrError::Overlay { .. })));
        }
        assert!(from_overlay(b"user.overlay.opaque".to_vec(), b"x".to_vec()).is_err());
        assert_eq!(
            from_overlay(b"user.mine".to_vec(), b"1".to_vec()).unwrap(),
            Some((b"user.mine".to_vec(), b"1".to_vec()))
        );
    }

    #[test]
    fn attributes_that_do_not_fit_are_errors() {
        let one = |name: &[u8], length| encode(&BTreeMap::from([(name.to_vec(), vec![0; length])]));
        assert!(matches!(one(b"system.nfs4_acl", 1), Err(XattrError::Name(_))));
        assert!(matches!(one(b"user.", 1), Err(XattrError::Name(_))));
        assert!(matches!(one(b"system.posix_acl_accessory", 1), Err(XattrError::Name(_))));
        assert!(matches!(one(b"user.x", 65536), Err(XattrError::Value { .. })));
        let many: BTreeMap<_, _> = (0..5).map(|n| (format!("user.{n}").into_bytes(), vec![0; 65535])).collect();
        assert!(matches!(encode(&many), Err(XattrError::Area { .. })));
        let most: BTreeMap<_, _> = (0..4).map(|n| (format!("user.{n}").into_bytes(), vec![0; 65520])).collect();
        assert_eq!(usize::from(icount(&encode(&most).unwrap())), 4 * (4 + 1 + 65520 + 3) / 4 + 1);
    }
}

//! Deterministic GUIDs: derived from names by SHA-256, so that a rebuild gives the same ones. RFC 9562, version 8
//! (section 5.8).

use std::fmt;

use sha2::{Digest, Sha256};

/// A GUID, its bytes in the order in which it is printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The GUID that `parts`, in this order, always give. Each part is length-prefixed, so `["ab"]` and `["a", "b"]`
/// differ.
pub fn derive(parts: &[&[u8]]) -> Guid {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    let hash: [u8; 32] = sha.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80; // version 8: custom
    bytes[8] = bytes[8] & 0x3f | 0x80; // variant 10
    Guid(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_guids_are_stable_well_formed_and_keep_parts_apart() {
        let guid = derive(&[b"rack", b"lab"]);
        assert_eq!(guid, derive(&[b"rack", b"lab"]));
        assert_ne!(guid, derive(&[b"rac", b"klab"]));
        let text = guid.to_string();
        assert_eq!((text.len(), &text[14..15]), (36, "8"));
        assert!("89ab".contains(&text[19..20]), "{text}");
    }
}

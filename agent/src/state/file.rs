//! The bytes of one copy: a header that shows every tear and flip, then the content.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `COPALST\n` |
//! | 8..12 | format version, little-endian (1) |
//! | 12..20 | generation: rises with every write; the newest intact copy wins |
//! | 20..28 | length of the content |
//! | 28..60 | SHA-256 over the name of the file, bytes 8..28 and the content |
//! | 60.. | the content |
//!
//! The name is hashed in, so that a file restored under another name is seen.

use sha2::{Digest as _, Sha256};

/// The newest format known here.
pub(super) const VERSION: u32 = 1;
/// Content larger than this is refused: nothing the agent keeps comes near.
pub(super) const MAX_CONTENT: usize = 8 << 20;
const MAGIC: &[u8; 8] = b"COPALST\n";
const HEADER: usize = 60;

/// Why a copy is not usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Torn, flipped, or not one of ours.
    Damaged(&'static str),
    /// Of a later format.
    Newer(u32),
}

/// The bytes of a copy.
pub(super) fn encode(name: &str, generation: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + content.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(&(content.len() as u64).to_le_bytes());
    let sum = checksum(name, &out[8..28], content);
    out.extend_from_slice(&sum);
    out.extend_from_slice(content);
    out
}

/// Generation and content of a copy.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<(u64, Vec<u8>), Flaw> {
    let Some((header, content)) = bytes.split_at_checked(HEADER) else {
        return Err(Flaw::Damaged("shorter than its header"));
    };
    if &header[..8] != MAGIC {
        return Err(Flaw::Damaged("it does not begin as a state file"));
    }
    if header[28..60] != checksum(name, &header[8..28], content) {
        return Err(Flaw::Damaged("its checksum does not fit"));
    }
    let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(Flaw::Newer(version));
    }
    let generation = u64::from_le_bytes(header[12..20].try_into().expect("eight bytes"));
    let length = u64::from_le_bytes(header[20..28].try_into().expect("eight bytes"));
    if length != content.len() as u64 {
        return Err(Flaw::Damaged("its length does not fit"));
    }
    Ok((generation, content.to_vec()))
}

fn checksum(name: &str, header: &[u8], content: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name.as_bytes());
    hash.update(header);
    hash.update(content);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_truncation_and_every_flipped_bit_is_seen() {
        let whole = encode("marks", 7, b"some content");
        assert_eq!(decode("marks", &whole), Ok((7, b"some content".to_vec())));
        for end in 0..whole.len() {
            assert!(matches!(decode("marks", &whole[..end]), Err(Flaw::Damaged(_))), "cut at {end}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode("marks", &flipped).is_err(), "bit {bit}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(decode("marks", &longer).is_err());
    }

    #[test]
    fn a_copy_under_another_name_is_refused() {
        assert!(decode("roots", &encode("marks", 1, b"x")).is_err());
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let mut bytes = encode("marks", 1, b"x");
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        let sum = checksum("marks", &bytes[8..28], b"x");
        bytes[28..60].copy_from_slice(&sum);
        assert_eq!(decode("marks", &bytes), Err(Flaw::Newer(9)));
    }
}

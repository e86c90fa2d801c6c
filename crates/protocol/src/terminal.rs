//! A terminal end to end, as the policy `grant` wants it: what passes the cloud is an offer, a grant, and then ciphertext.
//!
//! In: bytes of a stream, in whatever pieces. Out: [`Records`], and the two ends of a [`Line`]. Never here: who may open one;
//! that is [`crate::verify::terminal_grant`].
//!
//! The keys of a line are those of HPKE (RFC 9180, base mode, X25519, HKDF-SHA256) from the operator to a key the device made for this
//! session; each direction has its own, exported from there, and counts its records, so that none can be left out, repeated or turned back.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{ChaCha20Poly1305 as Cipher, KeyInit as _, aead::Aead as _};
use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, aead::ChaCha20Poly1305,
    kdf::HkdfSha256, kem::X25519HkdfSha256 as Kem,
};
use zeroize::Zeroizing;

use crate::{documents::TerminalOffer, keys::decode_array};

type PublicKey = <Kem as hpke::Kem>::PublicKey;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
type EncappedKey = <Kem as hpke::Kem>::EncappedKey;

/// Bytes before a record's body: its kind, and the body's length, big endian.
pub const RECORD_HEAD: usize = 3;
/// The most bytes sealed at a time.
pub const MAX_SEALED: usize = 16 << 10;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// The device's offer: an envelope.
    Offer,
    /// The operator's grant: an envelope.
    Grant,
    /// Bytes of the terminal, sealed.
    Sealed,
}

/// Why a line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No record has this kind.
    #[error("a record of an unknown kind")]
    Kind,
    /// A key that is none.
    #[error("a key of the line is unusable")]
    Key,
    /// Changed, left out, repeated, or of another session.
    #[error("a record is not what the other end sent")]
    Sealed,
}

/// One record, for the wire.
///
/// # Panics
/// Never: a body is an envelope or at most [`MAX_SEALED`] bytes and a tag.
#[must_use]
pub fn record(kind: RecordKind, body: &[u8]) -> Vec<u8> {
    let number = match kind {
        RecordKind::Offer => 1,
        RecordKind::Grant => 2,
        RecordKind::Sealed => 3,
    };
    let length = u16::try_from(body.len()).expect("bodies are bounded where they are made");
    let mut out = Vec::with_capacity(RECORD_HEAD + body.len());
    out.push(number);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// Finds records in bytes that come in pieces. Holds one record and one piece at most.
#[derive(Debug, Default)]
pub struct Records(Vec<u8>);

impl Records {
    /// More bytes came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next record that is whole.
    ///
    /// # Errors
    /// [`LineError::Kind`]; nothing after it can be read.
    pub fn whole(&mut self) -> Result<Option<(RecordKind, Vec<u8>)>, LineError> {
        let Some((head, rest)) = self.0.split_first_chunk::<RECORD_HEAD>() else { return Ok(None) };
        let kind = match head[0] {
            1 => RecordKind::Offer,
            2 => RecordKind::Grant,
            3 => RecordKind::Sealed,
            _ => return Err(LineError::Kind),
        };
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let body = body.to_vec();
        self.0.drain(..RECORD_HEAD + length);
        Ok(Some((kind, body)))
    }
}

/// The device's key for one session, gone with it.
pub struct LineKey(Zeroizing<[u8; 32]>);

impl LineKey {
    /// Makes a key from the system's random source.
    ///
    /// # Errors
    /// The system's own, when it has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)?;
        Ok(Self(seed))
    }

    fn private(&self) -> PrivateKey {
        PrivateKey::from_bytes(&*self.0).expect("any 32 bytes are an X25519 private key")
    }

    /// The public half, base64: an offer's `device_key`.
    #[must_use]
    pub fn public(&self) -> String {
        BASE64.encode(Kem::sk_to_pk(&self.private()).to_bytes())
    }

    /// The device's end, once a grant was accepted.
    ///
    /// # Errors
    /// [`LineError::Key`].
    pub fn accept(&self, offer: &TerminalOffer, operator_key: &str) -> Result<Line, LineError> {
        let encapped = decode_array::<32>(operator_key).ok_or(LineError::Key)?;
        let encapped = EncappedKey::from_bytes(&encapped).map_err(|_| LineError::Key)?;
        let context = hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &self.private(),
            &encapped,
            &info(offer),
        )
        .map_err(|_| LineError::Key)?;
        Line::new(|word, key| context.export(word, key), DEVICE_SAYS, OPERATOR_SAYS)
    }
}

impl std::fmt::Debug for LineKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LineKey({})", self.public())
    }
}

const DEVICE_SAYS: &[u8] = b"device to operator";
const OPERATOR_SAYS: &[u8] = b"operator to device";

fn info(offer: &TerminalOffer) -> Vec<u8> {
    let TerminalOffer { fleet_id, device_id, session_id, challenge, .. } = offer;
    format!("copal terminal v1\n{fleet_id}\n{device_id}\n{session_id}\n{challenge}").into_bytes()
}

/// The operator's end for an offer, and the grant's `operator_key`.
///
/// # Errors
/// [`LineError::Key`].
pub fn answer(offer: &TerminalOffer) -> Result<(String, Line), LineError> {
    let key = decode_array::<32>(&offer.device_key).ok_or(LineError::Key)?;
    let key = PublicKey::from_bytes(&key).map_err(|_| LineError::Key)?;
    let (encapped, context) =
        hpke::setup_sender::<ChaCha20Poly1305, HkdfSha256, Kem>(&OpModeS::Base, &key, &info(offer))
            .map_err(|_| LineError::Key)?;
    let line = Line::new(|word, key| context.export(word, key), OPERATOR_SAYS, DEVICE_SAYS)?;
    Ok((BASE64.encode(encapped.to_bytes()), line))
}

/// One end of a line: its two ways, which may be used apart.
#[derive(Debug)]
pub struct Line {
    /// What this end says.
    pub says: Says,
    /// What it hears.
    pub hears: Hears,
}

struct Way {
    cipher: Cipher,
    count: u64,
}

impl Way {
    /// A number is used once: 2^64 records do not fit into a session.
    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.count.to_be_bytes());
        self.count += 1;
        nonce
    }
}

/// The way out.
pub struct Says(Way);

/// The way in.
pub struct Hears(Way);

impl std::fmt::Debug for Says {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Says({})", self.0.count)
    }
}

impl std::fmt::Debug for Hears {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hears({})", self.0.count)
    }
}

impl Line {
    fn new<E>(
        export: impl Fn(&[u8], &mut [u8]) -> Result<(), E>,
        says: &[u8],
        hears: &[u8],
    ) -> Result<Self, LineError> {
        let way = |word: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            export(word, &mut *key).map_err(|_| LineError::Key)?;
            Ok(Way { cipher: Cipher::new((&*key).into()), count: 0 })
        };
        Ok(Self { says: Says(way(says)?), hears: Hears(way(hears)?) })
    }
}

impl Says {
    /// Seals bytes, as records.
    ///
    /// # Panics
    /// Never: a piece is far below the cipher's bound.
    #[must_use]
    pub fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.chunks(MAX_SEALED) {
            let nonce = self.0.nonce();
            let sealed =
                self.0.cipher.encrypt(&nonce.into(), piece).expect("a piece is far below 2^38 bytes");
            out.extend_from_slice(&record(RecordKind::Sealed, &sealed));
        }
        out
    }
}

impl Hears {
    /// Opens the next record's body.
    ///
    /// # Errors
    /// [`LineError::Sealed`]; nothing after it can be believed.
    pub fn open(&mut self, body: &[u8]) -> Result<Vec<u8>, LineError> {
        let nonce = self.0.nonce();
        self.0.cipher.decrypt(&nonce.into(), body).map_err(|_| LineError::Sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::OwnerKeys;

    fn pair() -> (Line, Line) {
        let key = LineKey::generate().unwrap();
        let offer = OwnerKeys::fixed().offer(&key);
        let (operator_key, operator) = answer(&offer).unwrap();
        (key.accept(&offer, &operator_key).unwrap(), operator)
    }

    fn bodies(bytes: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let (mut records, mut found) = (Records::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            records.push(piece);
            while let Some((kind, body)) = records.whole().unwrap() {
                assert_eq!(kind, RecordKind::Sealed);
                found.push(body);
            }
        }
        found
    }

    #[test]
    fn what_one_end_says_the_other_hears_in_whatever_pieces_it_comes() {
        let (mut device, mut operator) = pair();
        let text: Vec<u8> = (0..MAX_SEALED * 2 + 5).map(|n| n as u8).collect();
        for piece in [1, 7, 100_000] {
            let sealed = operator.says.seal(&text);
            let heard: Vec<u8> =
                bodies(&sealed, piece).iter().flat_map(|body| device.hears.open(body).unwrap()).collect();
            assert_eq!(heard, text);
            let answered = device.says.seal(b"yes");
            assert_eq!(operator.hears.open(&bodies(&answered, piece)[0]).unwrap(), b"yes");
        }
    }

    #[test]
    fn nothing_can_be_changed_left_out_repeated_or_turned_back() {
        let said =
            |operator: &mut Line| bodies(&[operator.says.seal(b"rm"), operator.says.seal(b"x")].concat(), 9);
        let (mut device, mut operator) = pair();
        let mut changed = said(&mut operator)[0].clone();
        changed[0] ^= 1;
        assert_eq!(device.hears.open(&changed), Err(LineError::Sealed));
        let (mut device, mut operator) = pair();
        assert_eq!(device.hears.open(&said(&mut operator)[1]), Err(LineError::Sealed));
        let (mut device, mut operator) = pair();
        let once = said(&mut operator);
        device.hears.open(&once[0]).unwrap();
        assert_eq!(device.hears.open(&once[0]), Err(LineError::Sealed));
        let (_, mut operator) = pair();
        let own = said(&mut operator);
        assert_eq!(operator.hears.open(&own[0]), Err(LineError::Sealed));
        let (mut other, _) = pair();
        assert_eq!(other.hears.open(&own[0]), Err(LineError::Sealed), "of another session");
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let key = LineKey::generate().unwrap();
        let mut offer = OwnerKeys::fixed().offer(&key);
        for bad in [String::new(), "x".to_owned(), BASE64.encode([0; 31]), BASE64.encode([0; 32])] {
            assert_eq!(key.accept(&offer, &bad).unwrap_err(), LineError::Key, "{bad}");
            offer.device_key.clone_from(&bad);
            assert_eq!(answer(&offer).unwrap_err(), LineError::Key, "{bad}");
        }
        let mut records = Records::default();
        records.push(&[9, 0, 0]);
        assert_eq!(records.whole(), Err(LineError::Kind));
    }
}

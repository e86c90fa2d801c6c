//! Bundle files (`*.copal`): a release and its blobs in one file, to be moved by hand.
//!
//! An uncompressed tar with `release.json` first, then for each payload in order of name `<payload>.index` (absent where
//! the payload is the file itself) and `<payload>.data`. Nothing else, in no other order, is accepted.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::{FormatError, MAX_IMAGE, MAX_INDEX};

const PART: &str = "bundle file";
const RECORD: u64 = 512;
/// The largest `release.json`.
pub const MAX_RELEASE: u64 = 2 << 20;
/// The most payloads.
pub const MAX_PAYLOADS: usize = 8;

/// Where a member's bytes lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub size: u64,
}

/// A payload of a bundle file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Its name in the release.
    pub name: String,
    /// The index, where there is one.
    pub index: Option<Span>,
    /// The data.
    pub data: Span,
}

/// What a bundle file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// `release.json`.
    pub release: Vec<u8>,
    /// The payloads, by name.
    pub payloads: Vec<Payload>,
}

/// Reads what a bundle file holds; blobs stay where they lie.
///
/// # Errors
/// [`FormatError`].
pub fn read(file: &mut (impl Read + Seek)) -> Result<Contents, FormatError> {
    let io = |e: io::Error| FormatError::read(PART, &e);
    let damaged = |why: String| FormatError::damaged(PART, why);
    let end = file.seek(SeekFrom::End(0)).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut at = 0;
    let mut release = None;
    let mut payloads: Vec<Payload> = Vec::new();
    let mut index: Option<(String, Span)> = None;
    loop {
        let mut header = [0; RECORD as usize];
        file.read_exact(&mut header).map_err(|_| damaged("it ends too early".to_owned()))?;
        at += RECORD;
        if crate::is_zero(&header) {
            break;
        }
        let (name, size) = parse_header(&header)?;
        let span = Span { offset: at, size };
        let next = size.checked_next_multiple_of(RECORD).and_then(|n| n.checked_add(at));
        at = next.filter(|next| *next <= end).ok_or_else(|| damaged(format!("{name} is cut off")))?;
        match (&release, name.rsplit_once('.')) {
            (None, Some(("release", "json"))) => {
                limit("release", size, MAX_RELEASE)?;
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                file.read_exact(&mut bytes).map_err(io)?;
                release = Some(bytes);
            }
            (Some(_), Some((payload, "index"))) if index.is_none() && is_next(payload, &payloads) => {
                limit("index", size, MAX_INDEX)?;
                index = Some((payload.to_owned(), span));
            }
            (Some(_), Some((payload, "data")))
                if is_next(payload, &payloads) && index.as_ref().is_none_or(|(name, _)| name == payload) =>
            {
                limit("data", size, MAX_IMAGE)?;
                if payloads.len() == MAX_PAYLOADS {
                    return Err(damaged("it has too many payloads".to_owned()));
                }
                let index = index.take().map(|(_, span)| span);
                payloads.push(Payload { name: payload.to_owned(), index, data: span });
            }
            _ => return Err(damaged(format!("{name:?} does not belong there"))),
        }
        file.seek(SeekFrom::Start(at)).map_err(io)?;
    }
    let Some(release) = release else { return Err(damaged("it has no release.json".to_owned())) };
    if payloads.is_empty() || index.is_some() {
        return Err(damaged("it lacks the data of a payload".to_owned()));
    }
    let mut rest = Vec::new();
    file.take(64 * 1024).read_to_end(&mut rest).map_err(io)?;
    if !crate::is_zero(&rest) || (rest.len() as u64) < RECORD || rest.len() == 64 * 1024 {
        return Err(damaged("something follows its end".to_owned()));
    }
    Ok(Contents { release, payloads })
}

fn limit(part: &'static str, found: u64, limit: u64) -> Result<(), FormatError> {
    if found > limit { Err(FormatError::TooLarge { part, found, limit }) } else { Ok(()) }
}

/// Whether a name is a payload's and comes after those there are.
fn is_next(name: &str, before: &[Payload]) -> bool {
    let well =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    well && before.last().is_none_or(|last| last.name.as_str() < name)
}

/// Begins a member of `size` bytes; they and [`pad`] must follow.
///
/// # Errors
/// The system's; `InvalidInput` for a name longer than 100 bytes.
pub fn begin(to: &mut impl Write, name: &str, size: u64) -> io::Result<()> {
    let mut header = [0_u8; RECORD as usize];
    if name.len() > 100 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    if size < 1 << 33 {
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    } else {
        // As GNU tar writes what does not fit eleven octal digits.
        header[124] = 0x80;
        header[128..136].copy_from_slice(&size.to_be_bytes());
    }
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum = checksum(&header);
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    to.write_all(&header)
}

/// Fills a member of `size` bytes up to a whole record.
///
/// # Errors
/// The system's.
pub fn pad(to: &mut impl Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size.next_multiple_of(RECORD) - size).unwrap_or(0);
    to.write_all(&[0; RECORD as usize][..over])
}

/// Ends the file.
///
/// # Errors
/// The system's.
pub fn finish(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * RECORD as usize])?;
    to.flush()
}

/// The sum of a header's bytes, its own field taken for spaces.
fn checksum(header: &[u8]) -> u32 {
    let field = 148..156;
    header.iter().enumerate().map(|(i, b)| if field.contains(&i) { 32 } else { u32::from(*b) }).sum()
}

fn parse_header(header: &[u8]) -> Result<(String, u64), FormatError> {
    let damaged = |why: &str| FormatError::damaged(PART, why);
    let octal = |field: &[u8]| {
        let text = std::str::from_utf8(field).ok()?.trim_end_matches(['\0', ' ']).trim_start();
        u64::from_str_radix(text, 8).ok()
    };
    if octal(&header[148..156]) != Some(checksum(header).into()) || &header[257..262] != b"ustar" {
        return Err(damaged("it is no tar, or a header is torn"));
    }
    if header[156] != b'0' || header[345] != 0 {
        return Err(damaged("a member is not a plain file"));
    }
    let name = header[..100].split(|b| *b == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).map_err(|_| damaged("a name is not text"))?.to_owned();
    let size = if header[124] == 0x80 && header[125..128] == [0; 3] {
        u64::from_be_bytes(header[128..136].try_into().expect("eight bytes"))
    } else {
        octal(&header[124..136]).ok_or_else(|| damaged("a size is not a number"))?
    };
    Ok((name, size))
}

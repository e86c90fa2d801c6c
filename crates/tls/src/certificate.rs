//! The three fields of an X.509 certificate that pinning needs, read from its DER: validity and public key. Names and
//! signatures are the TLS library's part.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest as _, Sha256};

/// Why bytes are not a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an X.509 certificate: {0}")]
pub struct CertificateError(&'static str);

/// What pinning looks at in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Unix seconds before which it does not count.
    pub not_before: i64,
    /// Unix seconds after which it does not count.
    pub not_after: i64,
    spki_sha256: [u8; 32],
}

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const EXPLICIT_VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// Where the bytes are not one; the message names the field.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let mut outer = Reader(Reader(der).value(SEQUENCE, "the outer sequence")?);
        let mut tbs = Reader(outer.value(SEQUENCE, "the part that is signed")?);
        if tbs.0.first() == Some(&EXPLICIT_VERSION) {
            tbs.value(EXPLICIT_VERSION, "version")?;
        }
        tbs.value(INTEGER, "serial number")?;
        tbs.value(SEQUENCE, "signature algorithm")?;
        tbs.value(SEQUENCE, "issuer")?;
        let mut validity = Reader(tbs.value(SEQUENCE, "validity")?);
        let not_before = validity.time()?;
        let not_after = validity.time()?;
        tbs.value(SEQUENCE, "subject")?;
        let spki = tbs.element(SEQUENCE, "public key")?;
        Ok(Self { not_before, not_after, spki_sha256: Sha256::digest(spki).into() })
    }

    /// SHA-256 of its DER SubjectPublicKeyInfo in padded base64: what a pin is compared with.
    #[must_use]
    pub fn pin(&self) -> String {
        BASE64.encode(self.spki_sha256)
    }

    /// The raw hash.
    #[must_use]
    pub const fn spki_sha256(&self) -> &[u8; 32] {
        &self.spki_sha256
    }
}

/// Reads DER elements one after another; every length is checked against what is there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element with its header.
    fn element(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], CertificateError> {
        self.next(tag, what).map(|(whole, _)| whole)
    }

    /// The next element's content.
    fn value(&mut self, tag: u8, what: &'static str) -> Result<&'a [u8], CertificateError> {
        self.next(tag, what).map(|(_, content)| content)
    }

    fn next(&mut self, tag: u8, what: &'static str) -> Result<(&'a [u8], &'a [u8]), CertificateError> {
        let bad = CertificateError(what);
        let [first, short, ..] = self.0 else { return Err(bad) };
        if *first != tag {
            return Err(bad);
        }
        let (header, length) = if short & 0x80 == 0 {
            (2, usize::from(*short))
        } else {
            // More than three bytes of length would be over 16 MiB; no certificate is.
            let count = usize::from(short & 0x7f);
            let digits = self.0.get(2..2 + count).filter(|_| (1..=3).contains(&count)).ok_or(bad.clone())?;
            (2 + count, digits.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
        };
        let whole = self.0.get(..header + length).ok_or(bad)?;
        self.0 = &self.0[header + length..];
        Ok((whole, &whole[header..]))
    }

    fn time(&mut self) -> Result<i64, CertificateError> {
        const WHAT: &str = "validity time";
        let bad = CertificateError(WHAT);
        let tag = *self.0.first().ok_or(bad.clone())?;
        if tag != UTC_TIME && tag != GENERALIZED_TIME {
            return Err(bad);
        }
        let text = self.value(tag, WHAT)?;
        let year_digits = if tag == UTC_TIME { 2 } else { 4 };
        if text.len() != year_digits + 11 || text[text.len() - 1] != b'Z' {
            return Err(bad);
        }
        let number = |from: usize, count: usize| -> Result<i64, CertificateError> {
            text[from..from + count].iter().try_fold(0, |n, byte| {
                if byte.is_ascii_digit() { Ok(n * 10 + i64::from(byte - b'0')) } else { Err(bad.clone()) }
            })
        };
        let mut year = number(0, year_digits)?;
        if tag == UTC_TIME {
            // RFC 5280: two digits from 50 on are of the last century.
            year += if year >= 50 { 1900 } else { 2000 };
        }
        let field = |index: usize| number(year_digits + 2 * index, 2);
        let (month, day, hour, minute, second) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return Err(bad);
        }
        Ok(days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
    }
}

/// Days from 1970-01-01 in the Gregorian calendar. Years are counted from March, so that the leap day ends one.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(tag: u8, text: &str) -> Result<i64, CertificateError> {
        let mut der = vec![tag, u8::try_from(text.len()).unwrap()];
        der.extend_from_slice(text.as_bytes());
        Reader(&der).time()
    }

    #[test]
    fn times_of_both_spellings_are_read() {
        assert_eq!(time(UTC_TIME, "700101000000Z"), Ok(0));
        assert_eq!(time(UTC_TIME, "491231235959Z"), Ok(2_524_607_999));
        assert_eq!(time(GENERALIZED_TIME, "20240229120000Z"), Ok(1_709_208_000));
        assert_eq!(time(GENERALIZED_TIME, "99991231235959Z"), Ok(253_402_300_799));
        for bad in ["", "700101000000", "7001010000Z", "701301000000Z", "7x0101000000Z", "700101250000Z"] {
            assert!(time(UTC_TIME, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_cut_anywhere_are_refused_without_a_panic() {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert!(Certificate::from_der(der.der()).is_ok());
        for end in 0..der.der().len() {
            assert!(Certificate::from_der(&der.der()[..end]).is_err(), "{end}");
        }
    }
}

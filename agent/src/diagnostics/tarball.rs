//! A `tar.gz` of small files, written as they come: ustar headers, no more of each than is allowed, no more in all.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};

const RECORD: usize = 512;

/// Being written.
pub(super) struct Tarball<W: Write> {
    out: GzEncoder<W>,
    mtime: u64,
    left: usize,
}

impl<W: Write> Tarball<W> {
    /// Of at most `most` bytes before compression; files get this time.
    pub fn new(out: W, mtime: u64, most: usize) -> Self {
        Self { out: GzEncoder::new(out, Compression::default()), mtime, left: most }
    }

    /// Adds a file, cut (and saying so) where there is no room for all of it. `name` has at most 99 bytes.
    pub fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        const CUT: &[u8] = b"\n(cut: the bundle is full)\n";
        // Header, and up to a record of padding.
        let room = self.left.saturating_sub(2 * RECORD);
        let mut cut = Vec::new();
        let content = if content.len() <= room {
            content
        } else if room > CUT.len() {
            cut.extend_from_slice(&content[..room - CUT.len()]);
            cut.extend_from_slice(CUT);
            &cut
        } else {
            return Ok(());
        };
        self.out.write_all(&header(name, content.len(), self.mtime)?)?;
        self.out.write_all(content)?;
        let padding = content.len().next_multiple_of(RECORD) - content.len();
        self.out.write_all(&[0; RECORD][..padding])?;
        self.left -= RECORD + content.len() + padding;
        Ok(())
    }

    /// Ends it.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * RECORD])?;
        self.out.finish()
    }
}

fn header(name: &str, size: usize, mtime: u64) -> io::Result<[u8; RECORD]> {
    if name.len() > 99 {
        return Err(io::Error::other(format!("{name}: a name of more than 99 bytes")));
    }
    let mut header = [0; RECORD];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{:011o}\0", mtime.min(0o77_777_777_777)));
    // The sum counts its own field as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn unpack(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.push((entry.path().unwrap().display().to_string(), content));
        }
        found
    }

    #[test]
    fn others_can_read_it() {
        let mut tarball = Tarball::new(Vec::new(), 1_800_000_000, 1 << 20);
        let files =
            [("bundle/a.json", b"{}".to_vec()), ("bundle/empty", vec![]), ("bundle/b", vec![7; 1024])];
        for (name, content) in &files {
            tarball.add(name, content).unwrap();
        }
        let found = unpack(&tarball.finish().unwrap());
        assert_eq!(found, files.map(|(name, content)| (name.to_owned(), content)));
        assert!(Tarball::new(Vec::new(), 0, 9999).add(&"x".repeat(100), b"").is_err());
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let mut tarball = Tarball::new(Vec::new(), 0, 12_000);
        for n in 0..5 {
            tarball.add(&format!("f{n}"), &[b'x'; 4000]).unwrap();
        }
        let found = unpack(&tarball.finish().unwrap());
        assert_eq!(found.iter().map(|(_, c)| c.len()).max(), Some(4000));
        assert!(found.iter().map(|(_, c)| c.len()).sum::<usize>() <= 12_000);
        assert!(found.last().unwrap().1.ends_with(b"(cut: the bundle is full)\n"), "{}", found.len());
    }
}

//! What the kernel said since the boot, as far as it still has it. Only root may read it, and the agent's unit may not: where
//! it cannot be read, checks go by what is left to them and say so.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
};

use nix::fcntl::OFlag;

use super::tree::Tree;

/// Bytes that are kept, the newest.
const MOST: usize = 1 << 20;
/// Records that are read; the kernel's ring holds fewer.
const RECORDS: usize = 200_000;

/// The kernel's messages, oldest first.
///
/// # Errors
/// Why they cannot be read.
pub fn read(tree: &Tree) -> Result<Vec<String>, String> {
    let path = tree.path("dev/kmsg");
    let told = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let mut file =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).map_err(told)?;
    let mut bytes = Vec::new();
    let mut record = vec![0; 16 << 10];
    for _ in 0..RECORDS {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&record[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            // Records were overwritten while we read; the next read goes on after them.
            Err(e) if e.kind() == ErrorKind::BrokenPipe || e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(told(e)),
        }
        if bytes.len() > 2 * MOST {
            bytes.drain(..bytes.len() - MOST);
        }
    }
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// Records are `priority,number,µs,flags;text`; lines that begin with a space belong to the one before.
fn parse(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let (head, text) = line.split_once(';')?;
            let mut parts = head.split(',');
            let _: u32 = parts.next()?.parse().ok()?;
            let _: u64 = parts.next()?.parse().ok()?;
            let us: u64 = parts.next()?.parse().ok()?;
            Some(format!(
                "[{:>5}.{:06}] {}",
                us / 1_000_000,
                us % 1_000_000,
                copal_protocol::text::inert(text)
            ))
        })
        .collect()
}

/// How many messages hold one of these, and the last that does.
#[must_use]
pub fn find(log: &[String], words: &[&str]) -> (u64, Option<String>) {
    let mut hits = log.iter().filter(|line| words.iter().any(|word| line.contains(word)));
    let last = hits.clone().next_back().cloned();
    (hits.by_ref().count() as u64, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_their_continuations_left() {
        let text = "6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n\
                    3,340,5690716,-;I/O error, dev mmcblk0, sector 2048\x1b[31m\nnonsense\n4,x,1,-;no\n";
        let log = parse(text);
        assert_eq!(
            log,
            [
                "[    5.140900] NET: Registered protocol family 10",
                "[    5.690716] I/O error, dev mmcblk0, sector 2048"
            ]
        );
        let (count, last) = find(&log, &["I/O error, dev"]);
        assert_eq!((count, last.as_deref()), (1, Some(log[1].as_str())));
        assert_eq!(find(&log, &["Out of memory"]), (0, None));
    }

    #[test]
    fn a_log_that_is_closed_to_us_is_no_empty_log() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&Tree::new(dir.path())).unwrap_err().contains("kmsg"));
    }
}

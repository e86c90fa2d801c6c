//! What the kernel said since the boot, as far as it still has it. Only root may read it, and the agent's unit may not: where
//! it cannot be read, checks go by what is left to them and say so.

use std::{
    collections::VecDeque,
    fs::OpenOptions,
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
};

use nix::fcntl::OFlag;

use super::tree::Tree;

/// Records that are read; the kernel's ring holds fewer.
const RECORDS: usize = 200_000;
/// Bytes of one.
const RECORD: usize = 16 << 10;

/// The kernel's newest messages, at most `most`, oldest first.
///
/// # Errors
/// Why they cannot be read.
pub fn read(tree: &Tree, most: usize) -> Result<Vec<String>, String> {
    let mut newest = VecDeque::new();
    each(tree, &mut |record| {
        newest.extend(message(record));
        if newest.len() > most {
            newest.pop_front();
        }
    })?;
    Ok(newest.into())
}

/// How many messages hold one of these words, and the last that does.
///
/// # Errors
/// Why they cannot be read.
pub fn find(tree: &Tree, words: &[&str]) -> Result<(u64, Option<String>), String> {
    let (mut count, mut last) = (0, None);
    each(tree, &mut |record| {
        if words.iter().any(|word| record.contains(word))
            && let Some(message) = message(record)
        {
            count += 1;
            last = Some(message);
        }
    })?;
    Ok((count, last))
}

/// Gives records one by one, as the kernel does: all of them take more memory than an agent.
fn each(tree: &Tree, take: &mut dyn FnMut(&str)) -> Result<(), String> {
    let path = tree.path("dev/kmsg");
    let told = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let mut file =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).map_err(told)?;
    let mut bytes = vec![0; RECORD];
    for _ in 0..RECORDS {
        match file.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => String::from_utf8_lossy(&bytes[..n]).lines().for_each(&mut *take),
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            // Records were overwritten while we read; the next read goes on after them.
            Err(e) if e.kind() == ErrorKind::BrokenPipe || e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(told(e)),
        }
    }
    Ok(())
}

/// A record is `priority,number,µs,flags;text`; lines that begin with a space belong to the one before.
fn message(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let mut parts = head.split(',');
    let _: u32 = parts.next()?.parse().ok()?;
    let _: u64 = parts.next()?.parse().ok()?;
    let us: u64 = parts.next()?.parse().ok()?;
    let text = copal_protocol::text::inert(text);
    Some(format!("[{:>5}.{:06}] {text}", us / 1_000_000, us % 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn records_are_read_and_their_continuations_left() {
        let text = "6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n\
                    3,340,5690716,-;I/O error, dev mmcblk0, sector 2048\x1b[31m\nnonsense\n4,x,1,-;no\n";
        let (_dir, tree) = plant(&[("dev/kmsg", text)]);
        let log = read(&tree, 9).unwrap();
        assert_eq!(
            log,
            [
                "[    5.140900] NET: Registered protocol family 10",
                "[    5.690716] I/O error, dev mmcblk0, sector 2048"
            ]
        );
        assert_eq!(read(&tree, 1).unwrap(), log[1..], "the newest");
        let (count, last) = find(&tree, &["I/O error, dev"]).unwrap();
        assert_eq!((count, last.as_deref()), (1, Some(log[1].as_str())));
        assert_eq!(find(&tree, &["Out of memory"]).unwrap(), (0, None));
    }

    #[test]
    fn a_log_that_is_closed_to_us_is_no_empty_log() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&Tree::new(dir.path()), 9).unwrap_err().contains("kmsg"));
    }
}

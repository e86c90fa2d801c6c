//! A container's last words, made safe: a log line is foreign input that ends on terminals and pages.

use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use copal_protocol::documents::{MAX_TAIL_LINE, MAX_TAIL_LINES, bound_tail};
use futures_util::StreamExt;

use super::Engine;
use crate::diagnostics::redact::{Redactor, is_secret};

/// Bytes read at most: a container may log one endless line.
const MAX_BYTES: usize = 256 << 10;
const LIMIT: Duration = Duration::from_secs(5);

impl Engine {
    /// The last lines of a container; empty where its log driver does not give them back.
    pub(super) async fn tail(&self, id: &str) -> Vec<String> {
        let Ok(docker) = self.docker() else { return Vec::new() };
        let options =
            LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&MAX_TAIL_LINES.to_string()).build();
        let mut stream = Box::pin(docker.logs(id, Some(options)));
        let mut bytes = Vec::new();
        let read = async {
            while let Some(Ok(part)) = stream.next().await {
                bytes.extend_from_slice(part.as_ref());
                if bytes.len() > 2 * MAX_BYTES {
                    bytes.drain(..bytes.len() - MAX_BYTES);
                }
            }
        };
        // What came in time is told.
        let _ = tokio::time::timeout(LIMIT, read).await;
        // They leave the device with the report.
        let env = self.env(id).await.unwrap_or_default();
        let secret = env.iter().filter_map(|pair| pair.split_once('=')).filter(|(name, _)| is_secret(name));
        let redactor = Redactor::new(secret.map(|(_, value)| value.to_owned()));
        lines(redactor.text(&String::from_utf8_lossy(&bytes)).as_bytes())
    }
}

/// The last lines of `bytes`, within the bounds of a reason's, invalid UTF-8 replaced, and nothing in them
/// that steers a terminal or turns the direction of writing.
#[must_use]
pub fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<String> = text
        .split(['\n', '\r'])
        .rev()
        .map(inert)
        .filter(|line| !line.is_empty())
        .take(MAX_TAIL_LINES)
        .collect();
    lines.reverse();
    bound_tail(&mut lines);
    lines
}

/// One line, bounded, with nothing in it that steers.
fn inert(line: &str) -> String {
    let mut out = copal_protocol::text::inert(line).replace('\t', " ");
    let mut end = out.len().min(MAX_TAIL_LINE);
    while !out.is_char_boundary(end) {
        end -= 1;
    }
    out.truncate(end);
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_steer_a_terminal_or_fake_another() {
        let bytes = b"\x1b]0;owned\x07ok\r\nnext\xff\xfe\n\xe2\x80\xaefdp.exe\n\n";
        assert_eq!(lines(bytes), ["ok", "next\u{fffd}\u{fffd}", "fdp.exe"]);
    }

    #[test]
    fn lines_and_their_number_are_bounded() {
        let long = "é".repeat(1000);
        assert_eq!(lines(long.as_bytes()), ["é".repeat(250)]);
        let many = (0..300).map(|n| format!("{n}\n")).collect::<String>();
        let kept = lines(many.as_bytes());
        assert_eq!((kept.len(), kept[0].as_str(), kept[199].as_str()), (200, "100", "299"));
        let wide = (0..300).map(|n| format!("{n:0>500}\n")).collect::<String>();
        assert_eq!(lines(wide.as_bytes()).len(), 50, "bytes are bounded, too");
    }
}

//! The hook's side: what git starts. It says to the server what git told it, prints what the server says, and ends as
//! the server says. It decides nothing.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::plan::Update;

/// The most bytes of refs git may hand over.
const MAX_INPUT: u64 = 4 << 20;

/// What a hook says first, on one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    /// The push it belongs to: its proof.
    pub(super) push: String,
    /// `pre-receive` or `post-receive`.
    pub(super) hook: String,
    /// Refs.
    pub(super) updates: Vec<Update>,
    /// Push options.
    #[serde(default)]
    pub(super) options: Vec<String>,
    /// Where git keeps the pushed objects until the push is accepted.
    #[serde(default)]
    pub(super) objects: Option<String>,
}

/// What the server answers, one a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// For the pusher.
    Say(String),
    /// The last word.
    Exit(i32),
}

/// Runs a hook; answers its exit code.
///
/// # Errors
/// When it was not started by git on behalf of this server, or the server does not answer.
pub fn run(name: &str) -> anyhow::Result<i32> {
    let env =
        |name: &str| std::env::var(name).with_context(|| format!("{name} is not set; only git starts this"));
    let mut input = String::new();
    std::io::stdin().take(MAX_INPUT).read_to_string(&mut input).context("reading refs")?;
    let updates = input
        .lines()
        .map(|line| {
            let mut parts = line.splitn(3, ' ');
            let mut part = || parts.next().map(str::to_owned).context("a line of refs is not old, new, name");
            Ok(Update { old: part()?, new: part()?, name: part()? })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let count: usize = std::env::var("GIT_PUSH_OPTION_COUNT").ok().and_then(|c| c.parse().ok()).unwrap_or(0);
    let options =
        (0..count.min(100)).filter_map(|i| std::env::var(format!("GIT_PUSH_OPTION_{i}")).ok()).collect();
    let hello = Hello {
        push: env("COPAL_PUSH_ID")?,
        hook: name.to_owned(),
        updates,
        options,
        objects: std::env::var("GIT_QUARANTINE_PATH").ok(),
    };
    let mut stream =
        UnixStream::connect(env("COPAL_HOOK_SOCKET")?).context("the cloud does not answer its hook")?;
    let mut line = serde_json::to_vec(&hello)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line.context("the cloud stopped during the push; push again")?)? {
            // The pusher may be gone; the push goes on.
            Word::Say(text) => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            Word::Exit(code) => return Ok(code),
        }
    }
    anyhow::bail!("the cloud stopped during the push; push again")
}

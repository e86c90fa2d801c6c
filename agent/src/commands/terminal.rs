//! `copal-agent terminal`: who has a shell on this device, and their end, for whoever stands at it. Works on files alone, so that it needs
//! neither the cloud nor an answer of the agent.

use std::time::{Duration, Instant};

use anyhow::bail;
use copal_protocol::ids::SessionId;

use crate::{settings::Places, terminal::open::Folder};

/// How long the end of a session is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum TerminalCommand {
    /// The terminals that are open: who, why, since when.
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// End terminals at once, with all that they started. To keep them out, set `[terminal] enabled = false` in the policy file.
    Kill {
        /// This session; all where none is named.
        session: Option<SessionId>,
    },
}

/// Does it; whether it ended well.
///
/// # Errors
/// No such session.
pub fn terminal(places: &Places, command: &TerminalCommand) -> anyhow::Result<bool> {
    let folder = Folder::of(&places.run_dir);
    match command {
        TerminalCommand::List { json: true } => println!("{}", serde_json::to_string_pretty(&folder.all())?),
        TerminalCommand::List { json: false } => {
            let open = folder.all();
            if open.is_empty() {
                println!("no terminal is open");
            }
            for r in open {
                let since = r.since.map_or_else(|| "-".to_owned(), |at| at.to_string());
                println!("{}  {}  by {}  since {since}: {}", r.session_id, r.target, r.by(), r.reason);
            }
        }
        TerminalCommand::Kill { session } => return kill(&folder, *session),
    }
    Ok(true)
}

fn kill(folder: &Folder, session: Option<SessionId>) -> anyhow::Result<bool> {
    let open: Vec<SessionId> = folder.all().iter().map(|r| r.session_id).collect();
    let wanted = match session {
        None => open,
        Some(session) if open.contains(&session) => vec![session],
        Some(session) => {
            bail!("no terminal of session {session} is open; `copal-agent terminal list` says which are")
        }
    };
    for session in &wanted {
        let _ = folder.ask_end(*session);
    }
    let until = Instant::now() + PATIENCE;
    let mut well = true;
    for session in wanted {
        while folder.is_there(session) && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        if folder.is_there(session) {
            well = false;
            eprintln!(
                "{session} has not ended within {} s: is the agent running? (systemctl status copal-agent)",
                PATIENCE.as_secs()
            );
        } else {
            println!("{session} is ended");
        }
    }
    Ok(well)
}

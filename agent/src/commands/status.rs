//! `copal-agent status`: what the running agent says of itself.

use anyhow::{Context as _, bail};

use crate::{report::read_status, settings::Places, terminal::open::Folder};

/// Prints the status; as JSON where asked.
///
/// # Errors
/// Where no agent wrote a status since the boot.
pub fn status(places: &Places, json: bool) -> anyhow::Result<()> {
    let path = places.run_dir.join("status.json");
    let found = read_status(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let Some(status) = found else {
        bail!(
            "there is no {}: the agent has not run since the boot (systemctl status copal-agent), or has another --run-dir",
            path.display()
        );
    };
    // A process of that id may be another by now; its name tells.
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", status.pid)).unwrap_or_default();
    let alive = comm.starts_with("copal-agent");
    let terminals = Folder::of(&places.run_dir).all();
    if json {
        let mut value = serde_json::to_value(&status)?;
        value["agent_running"] = alive.into();
        value["terminals"] = serde_json::to_value(&terminals)?;
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print!("{}", status.to_text(alive));
        for open in terminals {
            println!(
                "terminal  {} by {}: {} (copal-agent terminal kill {})",
                open.target,
                open.by(),
                open.reason,
                open.session_id
            );
        }
    }
    Ok(())
}

//! What a person can do about a reason. Pure; one place for the API, the command line and the dashboard.

/// What to do next; `None` where there is nothing to do but wait, or the message says it.
pub(crate) fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "os_waiting_lock" => {
            "A service holds the update lock. It reboots when the service lets go; wait, or stop what holds it."
        }
        "os_waiting_window" => "It reboots in the fleet's window: `copal os window` shows or lifts it.",
        "os_not_managed" => {
            "This device's operating system does not come from a Copal image (no /etc/copal/os.json). Write it a card with one, or pin it to nothing: `copal os list`."
        }
        "os_probe_failed" => {
            "The boot loader cannot be trusted with two slots; nothing was written. Update the boot loader or EEPROM, then `copal os retry`."
        }
        "os_root_mismatch" => {
            "What booted is not what the boot state says. Somebody booted it by hand, or its disk was copied: look at the device before anything is written."
        }
        "os_no_space" | "os_data_full" => {
            "Make room on the device (old images, logs), or build a smaller image; then `copal os retry`."
        }
        "os_incompatible" => {
            "Deploy a release made for this device and for the format of its data, or update over the version it names in between."
        }
        "os_corrupt" | "os_download" => {
            "It tries again by itself. If it stays so, upload the bundle again: `copal os release`."
        }
        "os_write" | "os_readback" => {
            "The disk takes writes wrongly or not at all. The old system runs on; replace the card or disk."
        }
        "os_arm" => {
            "The boot state could not be written. The old system runs on; look at the disk, then `copal os retry`."
        }
        "os_trials_used" => {
            "It was tried as often as allowed. Fix the release, or ask again: `copal os retry`."
        }
        "os_unhealthy" | "os_no_verdict" | "os_slot_invalid" | "os_rolled_back" | "os_parked" => {
            "The old system runs. Fix the release and deploy the next, or try this one again: `copal os retry`."
        }
        "os_cloud_unreachable" => {
            "The new system could not reach the cloud, so the old one came back. It tries again by itself; if it stays so, compare the network settings of both."
        }
        "os_power_lost" => "The power went during the trial. It tries again by itself.",
        "agent_parked" | "agent_unhealthy" | "agent_rolled_back" => {
            "The old agent runs. Fix the release and deploy the next, or try this one again: `copal os retry`."
        }
        "rolled_back" | "parked" => {
            "Fix the release and push again, or try this one again: `copal device retry`."
        }
        "paused" => "A person paused its updates; let it go on: `copal device resume`.",
        "awaiting_signature" => "Sign it: `copal release sign`.",
        "incompatible" => {
            "Deploy a release made for this kind of device, or move the device to another fleet."
        }
        "below_floor" => "Deploy a newer release: a device never goes below its floor.",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::advice;

    #[test]
    fn what_failed_has_an_answer_and_what_is_under_way_has_none() {
        for code in ["os_unhealthy", "os_not_managed", "os_readback", "os_cloud_unreachable", "rolled_back"] {
            assert!(advice(code).is_some(), "{code}");
        }
        for code in ["os_downloading", "os_trial", "downloading", "offline", ""] {
            assert!(advice(code).is_none(), "{code}");
        }
    }
}

//! Whether the power supply keeps its voltage. Only some boards measure it; a Raspberry Pi does.

use copal_protocol::diagnosis::{ProbeResult, Verdict};

use super::{firmware::Throttled, kernel_log, tree::Tree};

pub(super) const NAME: &str = "undervoltage";

/// What there is to see of the supply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The kernel's sensor says it is too low now; absent where there is no such sensor.
    pub alarm: Option<bool>,
    /// What the firmware tells.
    pub throttled: Option<Throttled>,
    /// How often the kernel said so since the boot, where its log can be read.
    pub told: Option<u64>,
}

/// Looks.
#[must_use]
pub fn read(tree: &Tree) -> Seen {
    let alarm = tree.names("sys/class/hwmon").into_iter().find_map(|name| {
        let folder = format!("sys/class/hwmon/{name}");
        let ours = tree.line(&format!("{folder}/name"))? == "rpi_volt";
        if ours { Some(tree.number(&format!("{folder}/in0_lcrit_alarm"))? != 0) } else { None }
    });
    let told = kernel_log::find(tree, &["Under-voltage detected", "Undervoltage detected"]);
    let told = told.ok().map(|(count, _)| count);
    Seen { alarm, throttled: Throttled::read(tree), told }
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    const ADVICE: &str = "use the power supply and cable made for this board, and feed what hangs on its USB ports separately; \
                          low voltage corrupts cards";
    let now = seen.alarm == Some(true) || seen.throttled.is_some_and(Throttled::under_voltage);
    let before = seen.told.unwrap_or(0) > 0 || seen.throttled.is_some_and(Throttled::was_under_voltage);
    let measured = seen.alarm.is_some() || seen.throttled.is_some();
    vec![match (now, before) {
        (true, _) => ProbeResult::new(NAME, Verdict::Failed, "the voltage is too low now").advice(ADVICE),
        (false, true) => {
            let times = seen.told.filter(|n| *n > 0).map(|n| format!(", {n} times")).unwrap_or_default();
            let detail = format!("the voltage was too low since the boot{times}; now it is not");
            ProbeResult::new(NAME, Verdict::Warning, &detail).advice(ADVICE)
        }
        (false, false) if measured => ProbeResult::new(NAME, Verdict::Ok, "the voltage is right"),
        _ => ProbeResult::new(NAME, Verdict::Unknown, "this board does not measure its supply"),
    }]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn low_voltage_now_fails_and_before_warns() {
        for (alarm, bits, told, verdict) in [
            (Some(true), None, None, Verdict::Failed),
            (None, Some(0x1), None, Verdict::Failed),
            (Some(false), Some(0x1), None, Verdict::Failed),
            (Some(false), Some(0x1_0000), None, Verdict::Warning),
            (Some(false), None, Some(3), Verdict::Warning),
            (Some(false), None, Some(0), Verdict::Ok),
            (None, Some(0), None, Verdict::Ok),
            (None, None, None, Verdict::Unknown),
            (None, None, Some(0), Verdict::Unknown),
        ] {
            let result = judge(&Seen { alarm, throttled: bits.map(Throttled), told }).remove(0);
            assert_eq!(result.verdict, verdict, "{alarm:?} {bits:?} {told:?}");
            assert_eq!(result.advice.is_empty(), matches!(verdict, Verdict::Ok | Verdict::Unknown));
        }
    }

    #[test]
    fn the_sensor_of_a_raspberry_pi_is_found_among_others() {
        let (_dir, tree) = plant(&[
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n"),
            (
                "dev/kmsg",
                "4,1,5,-;hwmon hwmon1: Undervoltage detected!\n4,2,6,-;hwmon hwmon1: Voltage normalised\n",
            ),
        ]);
        assert_eq!(read(&tree), Seen { alarm: Some(true), throttled: None, told: Some(1) });
    }
}

//! The hottest sensor, and whether the processor is slowed down.

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::{firmware::Throttled, tree::Tree};

pub(super) const NAME: &str = "temperature";
/// Thousandths of a degree from which boards of this kind slow themselves down.
const HOT: i64 = 80_000;
/// From which a warmer day is enough.
const WARM: i64 = 75_000;
/// What no such sensor shows unless it is broken.
const SENSIBLE: std::ops::RangeInclusive<i64> = -60_000..=200_000;

/// What there is to see of heat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Sensors by name, thousandths of a degree.
    pub sensors: Vec<(String, i64)>,
    /// What the firmware tells.
    pub throttled: Option<Throttled>,
    /// The kernel slows the processor down.
    pub cooled: bool,
}

/// Looks.
#[must_use]
pub fn read(tree: &Tree) -> Seen {
    let mut seen = Seen { throttled: Throttled::read(tree), ..Seen::default() };
    for name in tree.names("sys/class/thermal") {
        let folder = format!("sys/class/thermal/{name}");
        let kind = tree.line(&format!("{folder}/type")).unwrap_or_default();
        if name.starts_with("thermal_zone") {
            let temp = tree.number(&format!("{folder}/temp")).filter(|t| SENSIBLE.contains(t));
            seen.sensors.extend(temp.map(|t| (if kind.is_empty() { name.clone() } else { kind }, t)));
        } else if kind.starts_with("cpufreq-") || kind.starts_with("thermal-cpufreq-") || kind == "Processor"
        {
            seen.cooled |= tree.number(&format!("{folder}/cur_state")).is_some_and(|state| state > 0);
        }
    }
    if seen.sensors.is_empty() {
        for name in tree.names("sys/class/hwmon") {
            let folder = format!("sys/class/hwmon/{name}");
            let kind = tree.line(&format!("{folder}/name")).unwrap_or(name);
            let temp = tree.number(&format!("{folder}/temp1_input")).filter(|t| SENSIBLE.contains(t));
            seen.sensors.extend(temp.map(|t| (kind, t)));
        }
    }
    seen
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let slow = seen.cooled || seen.throttled.is_some_and(Throttled::slow);
    let was_slow = seen.throttled.is_some_and(Throttled::was_slow);
    let hottest = seen.sensors.iter().max_by_key(|(_, temp)| *temp);
    let mut detail = match hottest {
        Some((name, _)) => format!("{name}, the hottest of {} sensors", seen.sensors.len()),
        None => "no sensor tells".to_owned(),
    };
    if slow {
        detail += "; the processor is slowed down now";
    } else if was_slow {
        detail += "; the processor was slowed down since the boot";
    }
    let temp = hottest.map(|(_, temp)| *temp);
    let (verdict, threshold) = match temp {
        Some(HOT..) => (Verdict::Failed, HOT),
        _ if slow => (Verdict::Failed, HOT),
        Some(WARM..) => (Verdict::Warning, WARM),
        _ if was_slow => (Verdict::Warning, WARM),
        Some(_) => (Verdict::Ok, WARM),
        None => (Verdict::Unknown, WARM),
    };
    let mut result = ProbeResult::new(NAME, verdict, &detail);
    if let Some(temp) = temp {
        result = result.value(temp, Unit::MilliCelsius).threshold(threshold);
    }
    if matches!(verdict, Verdict::Warning | Verdict::Failed) {
        result = result.advice("let air at the device, add a heat sink or fan, keep it out of the sun; then look at what keeps the processor busy");
    }
    vec![result]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    #[test]
    fn heat_and_throttling_are_judged() {
        let sensors = |temp| vec![("cpu-thermal".to_owned(), temp), ("gpu".to_owned(), 20_000)];
        for (temp, bits, cooled, verdict) in [
            (74_999, None, false, Verdict::Ok),
            (75_000, None, false, Verdict::Warning),
            (80_000, None, false, Verdict::Failed),
            (40_000, Some(0), false, Verdict::Ok),
            (40_000, Some(0x1), false, Verdict::Ok),
            (40_000, Some(0x4), false, Verdict::Failed),
            (40_000, Some(0x2_0000), false, Verdict::Warning),
            (40_000, None, true, Verdict::Failed),
            (-20_000, None, false, Verdict::Ok),
        ] {
            let seen = Seen { sensors: sensors(temp), throttled: bits.map(Throttled), cooled };
            let result = judge(&seen).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert_eq!(result.value, Some(temp.max(20_000)));
        }
        assert_eq!(judge(&Seen::default())[0].verdict, Verdict::Unknown);
        let only_bits = Seen { throttled: Some(Throttled(0x8)), ..Seen::default() };
        assert_eq!(judge(&only_bits)[0].verdict, Verdict::Failed);
    }

    #[test]
    fn sensors_are_found_where_kernels_keep_them() {
        let (_dir, tree) = plant(&[
            ("sys/class/thermal/thermal_zone0/temp", "51540\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone1/temp", "-274000\n"),
            ("sys/class/thermal/cooling_device0/type", "cpufreq-cpu0\n"),
            ("sys/class/thermal/cooling_device0/cur_state", "2\n"),
            ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n"),
        ]);
        let seen = read(&tree);
        assert_eq!(seen.sensors, [("cpu-thermal".to_owned(), 51_540)]);
        assert!(seen.cooled && seen.throttled == Some(Throttled(0x50005)));
        let (_dir, tree) = plant(&[
            ("sys/class/hwmon/hwmon0/name", "coretemp"),
            ("sys/class/hwmon/hwmon0/temp1_input", "40000"),
            ("sys/class/thermal/cooling_device0/type", "intel_powerclamp"),
            ("sys/class/thermal/cooling_device0/cur_state", "7"),
        ]);
        assert_eq!(read(&tree), Seen { sensors: vec![("coretemp".to_owned(), 40_000)], ..Seen::default() });
    }
}

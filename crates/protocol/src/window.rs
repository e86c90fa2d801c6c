//! A daily window of time, such as `22:30-04:00`, in UTC: when a device may reboot.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const DAY: u32 = 24 * 60;

/// From one minute of the day to another, the latter not included; it may cross midnight. UTC, because a device's own
/// time zone is not known to whoever sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: u32,
    to: u32,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no window: write HH:MM-HH:MM in UTC, such as 22:30-04:00, with two different times")]
pub struct ParseWindowError(String);

impl Window {
    /// Whether it is open at this time, in Unix seconds.
    #[must_use]
    pub fn is_open(&self, now: u64) -> bool {
        self.minutes_since_opening(now) < self.length()
    }

    /// Seconds until it opens; 0 while it is open.
    #[must_use]
    pub fn opens_in(&self, now: u64) -> u64 {
        if self.is_open(now) {
            return 0;
        }
        u64::from(DAY - self.minutes_since_opening(now)) * 60 - now % 60
    }

    const fn length(&self) -> u32 {
        (self.to + DAY - self.from) % DAY
    }

    fn minutes_since_opening(&self, now: u64) -> u32 {
        let minute = u32::try_from(now / 60 % u64::from(DAY)).expect("a minute of the day");
        (minute + DAY - self.from) % DAY
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl FromStr for Window {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let minute = |part: &str| {
            let (hour, minute) = part.split_once(':')?;
            let two = |digits: &str, below: u32| {
                let sound = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
                sound.then(|| digits.parse().ok()).flatten().filter(|n: &u32| *n < below)
            };
            Some(two(hour, 24)? * 60 + two(minute, 60)?)
        };
        let parsed = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
        match parsed {
            Some((from, to)) if from != to => Ok(Self { from, to }),
            _ => Err(ParseWindowError(text.chars().take(40).collect())),
        }
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDNIGHT: u64 = 1_800_000_000 - 1_800_000_000 % 86_400;

    fn at(hour: u64, minute: u64) -> u64 {
        MIDNIGHT + hour * 3600 + minute * 60
    }

    #[test]
    fn it_is_open_between_its_times_and_over_midnight() {
        let night: Window = "22:30-04:00".parse().unwrap();
        assert!([at(22, 30), at(23, 59), at(0, 0), at(3, 59) + 59].iter().all(|t| night.is_open(*t)));
        assert!([at(4, 0), at(12, 0), at(22, 29) + 59].iter().all(|t| !night.is_open(*t)));
        let noon: Window = "12:00-12:01".parse().unwrap();
        assert!(noon.is_open(at(12, 0)) && !noon.is_open(at(12, 1)) && !noon.is_open(at(11, 59)));
    }

    #[test]
    fn the_time_until_it_opens_leads_into_it() {
        for text in ["22:30-04:00", "00:00-00:01", "23:59-00:00", "12:00-11:59"] {
            let window: Window = text.parse().unwrap();
            for now in (MIDNIGHT..MIDNIGHT + 86_400).step_by(617) {
                let wait = window.opens_in(now);
                assert!(window.is_open(now + wait), "{text} at {now}");
                assert!(wait == 0 || !window.is_open(now + wait - 1), "{text} at {now}");
            }
        }
    }

    #[test]
    fn it_is_written_as_it_was_read_and_nothing_else_is_read() {
        for text in ["00:00-23:59", "22:30-04:00"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "-",
            "22:30",
            "22:30-22:30",
            "24:00-01:00",
            "1:00-2:00",
            "01:60-02:00",
            "+1:00-02:00",
            "01:00-02:00 ",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}

//! Makes the device findable by its light. In: for how long. Out: a light of `/sys/class/leds` that goes on and off, and is then
//! left as it was.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the kernel shows lights.
pub const LEDS: &str = "/sys/class/leds";
/// Time on, and time off.
const HALF: Duration = Duration::from_millis(250);
/// Lights that are meant to be seen, the best first; else the first by name.
const BEST: &[&str] = &["ACT", "led0", "user", "status", "PWR", "led1"];

/// The light to use.
pub(super) fn find(leds: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(leds).ok()?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        // Of a keyboard or a network port nobody sees it on the device.
        .filter(|name| !name.starts_with("input") && !name.starts_with("mmc") && !name.contains("phy"))
        .collect();
    names.sort();
    let best = BEST.iter().find_map(|best| {
        names.iter().find(|name| name.rsplit(':').next().is_some_and(|last| last.eq_ignore_ascii_case(best)))
    });
    Some(leds.join(best.or_else(|| names.first())?))
}

/// Blinks.
///
/// # Errors
/// Where the kernel lets nobody.
pub(super) async fn blink(led: &Path, time: Duration) -> io::Result<()> {
    let trigger = fs::read_to_string(led.join("trigger"))?;
    let before = trigger.split_whitespace().find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    let brightness = fs::read_to_string(led.join("brightness"))?;
    let most = fs::read_to_string(led.join("max_brightness")).unwrap_or_else(|_| "1".to_owned());
    let _restore = Restore {
        led: led.to_owned(),
        trigger: before.unwrap_or("none").to_owned(),
        brightness: brightness.trim().to_owned(),
    };
    fs::write(led.join("trigger"), "none")?;
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        fs::write(led.join("brightness"), most.trim())?;
        tokio::time::sleep(HALF).await;
        fs::write(led.join("brightness"), "0")?;
        tokio::time::sleep(HALF).await;
    }
    Ok(())
}

/// Leaves the light as it was, also where the blinking is cut short.
struct Restore {
    led: PathBuf,
    trigger: String,
    brightness: String,
}

impl Drop for Restore {
    fn drop(&mut self) {
        for (file, value) in [("brightness", &self.brightness), ("trigger", &self.trigger)] {
            if let Err(error) = fs::write(self.led.join(file), value) {
                tracing::warn!(led = %self.led.display(), %error, "the light is not as it was");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(leds: &Path, name: &str) -> PathBuf {
        let led = leds.join(name);
        fs::create_dir(&led).unwrap();
        fs::write(led.join("trigger"), "none timer [mmc0] heartbeat\n").unwrap();
        fs::write(led.join("brightness"), "0\n").unwrap();
        fs::write(led.join("max_brightness"), "255\n").unwrap();
        led
    }

    #[test]
    fn a_light_that_people_see_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()), None);
        assert_eq!(find(&dir.path().join("none")), None);
        for name in ["input3::capslock", "mmc1::"] {
            led(dir.path(), name);
        }
        assert_eq!(find(dir.path()), None);
        led(dir.path(), "blue:power");
        led(dir.path(), "PWR");
        led(dir.path(), "green:act");
        assert_eq!(find(dir.path()).unwrap().file_name().unwrap(), "green:act");
    }

    #[tokio::test(start_paused = true)]
    async fn the_light_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let led = led(dir.path(), "ACT");
        let read = |file: &str| fs::read_to_string(led.join(file)).unwrap();
        blink(&led, Duration::from_secs(3)).await.unwrap();
        assert_eq!((read("trigger").as_str(), read("brightness").as_str()), ("mmc0", "0"));
        // Cut short.
        let short = tokio::time::timeout(Duration::from_millis(100), blink(&led, Duration::from_secs(3)));
        assert!(short.await.is_err());
        assert_eq!(read("brightness"), "0");
    }
}

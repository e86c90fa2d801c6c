//! The proxy and the time servers a device can be given from afar: what they may be, judged the same way by the cloud, which refuses
//! early, and by the device, which has the last word. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Takes away what was set.
pub const NONE: &str = "none";
/// The most characters of a proxy's URL.
pub const MAX_PROXY: usize = 512;
/// The most time servers.
pub const MAX_SERVERS: usize = 8;
/// What stands in place of user and password.
const GONE: &str = "(redacted)";

/// Whether a proxy, as it is set, is one: [`NONE`], or `http://` or `https://` with a host, and a port, a user and a password where
/// they are needed.
///
/// # Errors
/// What is wrong. Never says user or password.
pub fn check_proxy(text: &str) -> Result<(), String> {
    if text == NONE {
        return Ok(());
    }
    if text.len() > MAX_PROXY || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("a proxy's URL has at most {MAX_PROXY} visible ASCII characters"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("a proxy is {NONE}, or a URL such as http://proxy.example:3128"));
    };
    if !matches!(scheme, "http" | "https") {
        return Err("a proxy's URL begins with http:// or https://".to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '\\']) {
        return Err("a proxy's URL has no path: write user and password with %-signs where they have signs"
            .to_owned());
    }
    let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
    if user.is_some_and(|user| user.contains('@') || user.starts_with(':') || user.is_empty()) {
        return Err("before the @ of a proxy's URL stand a user and a password, as user:password".to_owned());
    }
    let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
        Some((host, port)) => {
            host.parse::<Ipv6Addr>().map_err(|_| "between [ and ] stands an IPv6 address".to_owned())?;
            (None, port.strip_prefix(':').or(port.is_empty().then_some("80")))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(place), Some("80")),
        },
    };
    if let Some(host) = host {
        check_host(host)?;
    }
    match port.map(str::parse::<u16>) {
        Some(Ok(1..)) => Ok(()),
        _ => Err("a proxy's port is 1 to 65535".to_owned()),
    }
}

/// Whether this can be set: what is absent stays as it is.
///
/// # Errors
/// What is wrong. Never says a user or a password.
pub fn check(proxy: Option<&str>, ntp: Option<&[String]>) -> Result<(), String> {
    if proxy.is_none() && ntp.is_none() {
        return Err("neither a proxy nor time servers are to be set".to_owned());
    }
    proxy.map_or(Ok(()), check_proxy)?;
    ntp.map_or(Ok(()), check_servers)
}

/// Whether these are time servers: names or addresses, at most [`MAX_SERVERS`]. None: the system's own.
///
/// # Errors
/// What is wrong.
pub fn check_servers(servers: &[String]) -> Result<(), String> {
    if servers.len() > MAX_SERVERS {
        return Err(format!("{} time servers; there are at most {MAX_SERVERS}", servers.len()));
    }
    servers.iter().try_for_each(|server| match server.parse::<Ipv6Addr>() {
        Ok(_) => Ok(()),
        Err(_) => check_host(server),
    })
}

/// A name, or an IPv4 address.
fn check_host(host: &str) -> Result<(), String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What is all digits and dots is an address or nothing.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if host.len() <= 253 && host.split('.').all(label) && (!numeric || host.parse::<Ipv4Addr>().is_ok()) {
        return Ok(());
    }
    let shown: String = host.chars().filter(char::is_ascii_graphic).take(60).collect();
    Err(format!("{shown:?} is no host's name or address"))
}

/// A proxy as it may be shown: user and password are taken out, whatever else is wrong with it.
#[must_use]
pub fn shown_proxy(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{GONE}@{place}"),
        (None, Some((_, place))) => format!("{GONE}@{place}"),
        (_, None) => text.to_owned(),
    }
}

/// What of a proxy's URL must not be shown: what stands before the `@`, and the password in it.
#[must_use]
pub fn secrets_of(text: &str) -> Vec<String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let Some((user, _)) = rest.rsplit_once('@') else { return Vec::new() };
    let password = user.split_once(':').map(|(_, password)| password.to_owned());
    std::iter::once(user.to_owned()).chain(password).filter(|secret| !secret.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn proxies_are_told_from_what_is_none() {
        for good in [
            "none",
            "http://proxy.example:3128",
            "http://proxy",
            "https://10.0.0.1:443/",
            "http://me:s%40cret@proxy.example:3128",
            "http://me@[fd00::1]:8080",
            "http://[::1]",
        ] {
            assert_eq!(check_proxy(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "None",
            "proxy.example:3128",
            "socks5://proxy:1080",
            "http://",
            "http://:3128",
            "http://@proxy:1",
            "http://:hunter2@proxy:1",
            "http://a@hunter2@proxy:1",
            "http://proxy:0",
            "http://proxy:65536",
            "http://proxy:hunter2",
            "http://proxy/path",
            "http://proxy?x=hunter2",
            "http://pro xy",
            "http://proxy\n:1",
            "http://-proxy",
            "http://[::1",
            "http://[::g]:1",
            "http://[::1]x",
            "http://1.2.3:80",
            "http://ä.example",
        ] {
            let why = check_proxy(bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{bad}: {why}");
        }
        assert!(check_proxy(&format!("http://{}", "a.".repeat(300))).is_err());
    }

    #[test]
    fn time_servers_are_names_and_addresses() {
        let servers = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(check_servers(&[]), Ok(()));
        assert_eq!(check_servers(&servers(&["0.pool.ntp.org", "10.0.0.1", "fd00::1", "ntp"])), Ok(()));
        for bad in ["", " ", "a b", "-x", "x-", "a..b", "1.2.3", "a\nServer=b", "a;b", "https://a", "ä"] {
            assert!(check_servers(&servers(&[bad])).is_err(), "{bad:?}");
        }
        assert!(check_servers(&vec!["a".to_owned(); MAX_SERVERS + 1]).is_err());
    }

    #[test]
    fn user_and_password_are_not_shown() {
        assert_eq!(shown_proxy("http://me:hunter2@proxy:1"), "http://(redacted)@proxy:1");
        assert_eq!(shown_proxy("http://a:b@c:hunter2@proxy:1"), "http://(redacted)@proxy:1");
        assert_eq!(shown_proxy("me:hunter2@proxy"), "(redacted)@proxy");
        assert_eq!(shown_proxy("http://proxy:1"), "http://proxy:1");
        assert_eq!(secrets_of("http://me:hunter2@proxy:1"), ["me:hunter2", "hunter2"]);
        assert_eq!(secrets_of("http://proxy:1"), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn what_stands_before_the_at_is_never_shown(user in "[a-z]{3,9}", password in "[A-Z0-9:/@?#]{6,20}", text: String) {
            let url = format!("http://{user}:{password}@proxy.example:3128");
            prop_assert!(!shown_proxy(&url).contains(&password));
            prop_assert_eq!(shown_proxy(&url).matches('@').count(), 1);
            if let Err(why) = check_proxy(&url) {
                prop_assert!(!why.contains(&password), "{}", why);
            }
            // Nothing makes it panic.
            let _ = (check_proxy(&text), shown_proxy(&text), secrets_of(&text));
        }
    }
}

//! Whether the proxy that is set takes connections.

use std::time::{Duration, Instant};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};
use tokio::net::TcpStream;

use super::{dns, redact::without_userinfo, tree::Tree};
use crate::settings::is_loopback;

pub(super) const NAME: &str = "proxy";
const PATIENCE: Duration = Duration::from_secs(5);
/// In this order, as the agent's HTTP client reads them.
const VARIABLES: &[&str] = &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// None is set.
    None,
    /// One is set that the way to the cloud does not go by.
    Unused {
        /// The variable.
        variable: &'static str,
    },
    /// One is set that cannot be understood.
    Wrong {
        /// The variable.
        variable: &'static str,
        /// Its value without user and password.
        shown: String,
    },
    /// One is set.
    Set {
        /// The variable.
        variable: &'static str,
        /// Its value without user and password.
        shown: String,
        /// Milliseconds until it took a connection, or why it did not.
        answered: Result<i64, String>,
    },
}

/// The proxy of the way to the cloud, where there is one: what names it, and its URL, which may hold a password.
enum Way {
    None,
    /// The variable is set, and the way to the cloud is exempt.
    Unused(&'static str),
    By(&'static str, String),
}

/// `set` is what was set from afar, `environment` gives a variable's value.
fn way(set: Option<String>, environment: impl Fn(&str) -> Option<String>, bases: &[String]) -> Way {
    let given =
        VARIABLES.iter().find_map(|name| Some((*name, environment(name).filter(|v| !v.trim().is_empty())?)));
    let is_set = set.is_some();
    let Some((variable, value)) = set.map(|set| (SET, set)).or(given) else { return Way::None };
    let exempt = environment("NO_PROXY").or_else(|| environment("no_proxy")).unwrap_or_default();
    if !is_set && !bases.is_empty() && bases.iter().all(|base| is_exempt(base, &exempt)) {
        return Way::Unused(variable);
    }
    let value = value.trim();
    Way::By(variable, if value.contains("://") { value.to_owned() } else { format!("http://{value}") })
}

/// The proxy the way to the cloud goes by, without user and password.
pub(super) fn in_use(
    set: Option<String>,
    environment: impl Fn(&str) -> Option<String>,
    bases: &[String],
) -> Option<String> {
    match way(set, environment, bases) {
        Way::By(_, whole) => Some(without_userinfo(&whole)),
        Way::None | Way::Unused(_) => None,
    }
}

/// Host and port that the way to the cloud first leads to, and whether that is a proxy.
pub(super) fn first_hop(
    set: Option<String>,
    environment: impl Fn(&str) -> Option<String>,
    bases: &[String],
) -> Option<(String, u16, bool)> {
    let (whole, by_proxy) = match way(set, environment, bases) {
        Way::By(_, whole) => (whole, true),
        Way::None | Way::Unused(_) => (bases.first()?.clone(), false),
    };
    host_port(&whole).map(|(host, port)| (host, port, by_proxy))
}

fn host_port(url: &str) -> Option<(String, u16)> {
    let uri = url.parse::<http::Uri>().ok()?;
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some((host, uri.port_u16().unwrap_or(default)))
}

/// What a proxy that was set from afar is called.
const SET: &str = "copal device network";

/// Looks, and connects. `set` is what was set from afar, `environment` gives a variable's value.
pub async fn read(
    tree: &Tree,
    set: Option<String>,
    environment: impl Fn(&str) -> Option<String>,
    bases: &[String],
) -> Seen {
    let (variable, whole) = match way(set, environment, bases) {
        Way::None => return Seen::None,
        Way::Unused(variable) => return Seen::Unused { variable },
        Way::By(variable, whole) => (variable, whole),
    };
    let shown = without_userinfo(&whole);
    let Some((host, port)) = host_port(&whole) else { return Seen::Wrong { variable, shown } };
    let began = Instant::now();
    let connecting = async {
        let mut last = Err(format!("{host} has no address"));
        for address in dns::find(tree, &host).await?.into_iter().take(4) {
            match TcpStream::connect((address, port)).await {
                Ok(_) => return Ok(()),
                Err(e) => last = Err(e.to_string()),
            }
        }
        last
    };
    let answered = match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(Ok(())) => Ok(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX)),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    Seen::Set { variable, shown, answered }
}

/// Whether this URL is reached without the proxy: it is this machine's own, or `NO_PROXY` names it or a domain it is in.
fn is_exempt(base: &str, exempt: &str) -> bool {
    let Some(host) = base.parse::<http::Uri>().ok().and_then(|uri| Some(uri.host()?.to_ascii_lowercase()))
    else {
        return false;
    };
    let named = |word: &str| {
        let word = word.trim().trim_start_matches('.').to_ascii_lowercase();
        !word.is_empty() && (word == "*" || host == word || host.ends_with(&format!(".{word}")))
    };
    is_loopback(&host) || exempt.split(',').any(named)
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    vec![match seen {
        Seen::None => ProbeResult::new(NAME, Verdict::Ok, "no proxy is set"),
        Seen::Unused { variable } => ProbeResult::new(
            NAME,
            Verdict::Ok,
            &format!("{variable} is set; the way to the cloud does not go by it"),
        ),
        Seen::Wrong { variable, shown } => ProbeResult::new(
            NAME,
            Verdict::Failed,
            &format!("{variable} is {shown}, which is no proxy's address"),
        )
        .advice("write it as http://host:port in the agent's environment (systemctl edit copal-agent)"),
        Seen::Set { variable, shown, answered: Ok(ms) } => {
            let detail = format!("{shown} ({variable}) takes connections");
            ProbeResult::new(NAME, Verdict::Ok, &detail).value(*ms, Unit::Ms)
        }
        Seen::Set { variable, shown, answered: Err(why) } => {
            let detail = format!("{shown} ({variable}) takes no connections: {why}");
            ProbeResult::new(NAME, Verdict::Failed, &detail)
                .advice("the agent reaches the cloud by it alone: bring it back, or take the variable away (systemctl edit copal-agent)")
        }
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_in_use_is_the_one_set_from_afar_and_shows_no_password() {
        let bases = ["https://cloud.example".to_owned()];
        let by = |name: &str| (name == "https_proxy").then(|| "proxy.example:3128".to_owned());
        assert_eq!(in_use(None, by, &bases).as_deref(), Some("http://proxy.example:3128"));
        let set = in_use(Some("http://max:secret@other.example:8080".to_owned()), by, &bases).unwrap();
        assert!(set.contains("other.example:8080") && !set.contains("secret"), "{set}");
        let exempt = |name: &str| by(name).or((name == "NO_PROXY").then(|| "cloud.example".to_owned()));
        assert_eq!(in_use(None, exempt, &bases), None);
    }

    async fn with(value: &str) -> (Seen, ProbeResult) {
        let (value, (_dir, tree)) = (value.to_owned(), super::super::tests::plant(&[]));
        let bases = ["https://cloud.example".to_owned()];
        let seen =
            read(&tree, None, move |name| (name == "https_proxy").then(|| value.clone()), &bases).await;
        let result = judge(&seen).remove(0);
        (seen, result)
    }

    #[tokio::test]
    async fn a_proxy_that_is_away_fails_and_its_password_is_not_told() {
        assert_eq!(
            judge(&read(&Tree::new("/nonexistent"), None, |_| None, &[]).await)[0].verdict,
            Verdict::Ok
        );
        assert_eq!(with(" ").await.0, Seen::None);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (_, result) = with(&format!("http://me:hunter2@{address}")).await;
        assert_eq!(result.verdict, Verdict::Ok, "{result:?}");
        assert!(!result.detail.contains("hunter2") && result.detail.contains("https_proxy"), "{result:?}");
        drop(listener);
        for value in [
            format!("http://me:hunter2@{address}"),
            format!("me:hunter2@{address}"),
            "http://me:hunter2@".to_owned(),
        ] {
            let (_, result) = with(&value).await;
            assert_eq!(result.verdict, Verdict::Failed, "{result:?}");
            assert!(!result.detail.contains("hunter2"), "{result:?}");
        }
    }

    #[test]
    fn who_is_exempt_is_found_by_name_and_domain() {
        for (base, exempt, is) in [
            ("https://cloud.example:8443", "", false),
            ("https://cloud.example:8443", "other.example, Cloud.example", true),
            ("https://cloud.example", ".example", true),
            ("https://cloud.example", "ud.example", false),
            ("https://cloud.example", "*", true),
            ("http://127.0.0.1:80", "", true),
            ("https://[::1]", "", true),
            ("nonsense", "", false),
        ] {
            assert_eq!(is_exempt(base, exempt), is, "{base} {exempt}");
        }
    }
}

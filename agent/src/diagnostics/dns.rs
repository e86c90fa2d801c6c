//! Whether the cloud's name is found, and each name server answers.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};
use futures_util::future::join_all;

use super::tree::Tree;
use crate::cloud::{ask_server, name_servers};

pub(super) const NAME: &str = "dns";
/// A server has so long; programs on the device are hardly more patient.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a second name, asked after the first.
const SECOND: Duration = Duration::from_secs(3);
/// Milliseconds beyond which everything on the device feels slow.
const SLOW: i64 = 2000;
/// A name that every resolver of the internet knows, by which a server that is cut off is told from a name that is wrong.
const WELL_KNOWN: &str = "example.com";
/// The most name servers that are asked; resolvers use three.
const MOST: usize = 6;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The cloud's host name; absent where it is an address, or not known.
    pub name: Option<String>,
    /// Why there is no name.
    pub nameless: &'static str,
    /// Its addresses by `/etc/hosts`.
    pub hosts: Vec<String>,
    /// Name servers; or why there are none.
    pub servers: Result<Vec<Server>, String>,
}

/// A name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where.
    pub ip: IpAddr,
    /// The addresses it gave, or why it did not answer.
    pub said: Result<Vec<IpAddr>, String>,
    /// It does not know the cloud's name: whether it knows another.
    pub knows_another: Option<bool>,
    /// Milliseconds until then.
    pub ms: i64,
}

/// Looks, and asks.
pub async fn read(tree: &Tree, bases: &[String]) -> Seen {
    let host = bases.iter().find_map(|base| Some(base.parse::<http::Uri>().ok()?.host()?.to_owned()));
    let name = host.filter(|host| !is_address(host));
    let hosts = match &name {
        Some(name) => in_hosts(&tree.text("etc/hosts").unwrap_or_default(), name),
        None => Vec::new(),
    };
    // Without a name of the cloud's, whether a server answers at all is still worth knowing.
    let asked = name.clone().unwrap_or_else(|| WELL_KNOWN.to_owned());
    let servers = match name_servers(tree.path("etc/resolv.conf")) {
        Err(why) => Err(why),
        Ok(servers) => Ok(join_all(servers.into_iter().take(MOST).map(|server| {
            let asked = asked.clone();
            async move {
                let began = Instant::now();
                let said = ask_server(server, &asked, PATIENCE).await;
                let ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
                let knows_another = match &said {
                    // Asked of nobody but a server that failed at the first name: a device that is well tells no others of itself.
                    Ok(none) if none.is_empty() && asked != WELL_KNOWN => {
                        let another = ask_server(server, WELL_KNOWN, SECOND).await;
                        Some(another.is_ok_and(|found| !found.is_empty()))
                    }
                    _ => None,
                };
                Server { ip: server, said, knows_another, ms }
            }
        }))
        .await),
    };
    let nameless = if bases.is_empty() {
        "the cloud's address is not known here"
    } else {
        "the cloud is not addressed by a name that is looked up"
    };
    Seen { name, nameless, hosts, servers }
}

/// A host's addresses, as the agent's HTTP client finds them.
pub(super) async fn find(tree: &Tree, host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let hosts = in_hosts(&tree.text("etc/hosts").unwrap_or_default(), host);
    let hosts: Vec<IpAddr> = hosts.iter().filter_map(|address| address.parse().ok()).collect();
    if !hosts.is_empty() {
        return Ok(hosts);
    }
    let mut last = Err(format!("{host} is not found"));
    for server in name_servers(tree.path("etc/resolv.conf"))?.into_iter().take(MOST) {
        match ask_server(server, host, PATIENCE).await {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            Err(why) => last = Err(format!("{host} is not found: {server}: {why}")),
        }
    }
    last
}

fn is_address(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

fn in_hosts(text: &str, name: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let address = words.next()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then(|| address.to_owned())
        })
        .take(8)
        .collect()
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let none = Vec::new();
    let servers = seen.servers.as_ref().unwrap_or(&none);
    let found = servers.iter().find_map(|s| s.said.as_ref().ok().filter(|found| !found.is_empty()));
    let mut results = Vec::new();
    let summary = match (&seen.name, found, &seen.servers) {
        (None, ..) => ProbeResult::new(NAME, Verdict::Ok, seen.nameless),
        (Some(name), _, _) if !seen.hosts.is_empty() => {
            ProbeResult::new(NAME, Verdict::Ok, &format!("{name} is {} by /etc/hosts", seen.hosts.join(", ")))
        }
        (Some(name), Some(found), _) => {
            let list: Vec<String> = found.iter().take(4).map(ToString::to_string).collect();
            ProbeResult::new(NAME, Verdict::Ok, &format!("{name} is {}", list.join(", ")))
        }
        (Some(_), None, Err(why)) => ProbeResult::new(NAME, Verdict::Failed, why)
            .advice("see that DHCP gives name servers, or set them where the network is set up"),
        (Some(name), None, Ok(servers)) => {
            let unknown = servers.iter().any(|s| s.said.is_ok());
            let (detail, advice) = if servers.iter().any(|s| s.knows_another == Some(false)) {
                (
                    "the name servers know neither it nor example.com",
                    "they lead nowhere: look at where they ask in their turn, or use others; in a network without the internet give them \
                     the cloud's name",
                )
            } else if unknown {
                (
                    "the name servers know no such name",
                    "look for a typo in copal.json's cloud_url, then at the cloud's own DNS entry",
                )
            } else {
                (
                    "no name server answers",
                    "see that UDP and TCP port 53 are open to them, and that the network is up",
                )
            };
            ProbeResult::new(NAME, Verdict::Failed, &format!("{name} is not found: {detail}")).advice(advice)
        }
    };
    results.push(summary);
    results.extend(servers.iter().map(|Server { ip, said, ms, .. }| {
        let subject = ip.to_string();
        match said {
            Ok(_) => {
                let verdict = if *ms > SLOW { Verdict::Warning } else { Verdict::Ok };
                let advice = if verdict == Verdict::Ok {
                    ""
                } else {
                    "use a name server that is nearer, or look at what fills the line"
                };
                ProbeResult::new(NAME, verdict, "answers")
                    .of(&subject)
                    .value(*ms, Unit::Ms)
                    .threshold(SLOW)
                    .advice(advice)
            }
            // With another one that works names are found, only later.
            Err(why) => ProbeResult::new(NAME, Verdict::Warning, &format!("does not answer: {why}"))
                .of(&subject)
                .advice("take it out of the network's settings, or bring it back"),
        }
    }));
    results
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    /// Address, how many addresses it gave or why none, milliseconds.
    type Asked<'a> = (&'a str, Result<usize, &'a str>, i64);

    fn seen(name: Option<&str>, servers: Result<Vec<Asked<'_>>, &str>) -> Seen {
        let servers = servers.map_err(str::to_owned).map(|servers| {
            let one = |(server, said, ms): Asked<'_>| {
                let said = said.map(|n| vec![IpAddr::from([192, 0, 2, 1]); n]).map_err(str::to_owned);
                let knows_another = said.as_ref().is_ok_and(Vec::is_empty).then_some(true);
                Server { ip: server.parse().unwrap(), said, knows_another, ms }
            };
            servers.into_iter().map(one).collect()
        });
        Seen {
            name: name.map(str::to_owned),
            nameless: "not addressed by a name",
            hosts: Vec::new(),
            servers,
        }
    }

    #[test]
    fn a_name_that_is_not_found_fails_and_a_dead_server_warns() {
        use Verdict::{Failed, Ok as Well, Warning};
        const NAME: Option<&str> = Some("cloud.example");
        for (seen, verdicts, word) in [
            (seen(NAME, Ok(vec![("192.0.2.53", Ok(1), 9)])), vec![Well, Well], "is 192.0.2.1"),
            (
                seen(NAME, Ok(vec![("192.0.2.53", Err("timed out"), 9), ("::1", Ok(2), 2001)])),
                vec![Well, Warning, Warning],
                "is 192.0.2.1",
            ),
            (
                seen(NAME, Ok(vec![("192.0.2.53", Err("timed out"), 9)])),
                vec![Failed, Warning],
                "no name server answers",
            ),
            (seen(NAME, Ok(vec![("192.0.2.53", Ok(0), 9)])), vec![Failed, Well], "know no such name"),
            (seen(NAME, Err("resolv.conf has no nameserver")), vec![Failed], "no nameserver"),
            (seen(None, Err("resolv.conf has no nameserver")), vec![Well], "not addressed by a name"),
            (
                Seen { hosts: vec!["10.0.0.1".to_owned()], ..seen(NAME, Err("none")) },
                vec![Well],
                "by /etc/hosts",
            ),
        ] {
            let results = judge(&seen);
            assert_eq!(results.iter().map(|r| r.verdict).collect::<Vec<_>>(), verdicts, "{results:?}");
            assert!(results[0].detail.contains(word), "{results:?}");
        }
    }

    #[test]
    fn a_second_name_tells_a_wrong_name_from_a_server_that_leads_nowhere() {
        let mut seen = seen(Some("cloud.example"), Ok(vec![("192.0.2.53", Ok(0), 9)]));
        assert!(judge(&seen)[0].advice.contains("typo"), "it knows another");
        for server in seen.servers.as_mut().unwrap() {
            server.knows_another = Some(false);
        }
        let result = &judge(&seen)[0];
        assert!(result.verdict == Verdict::Failed && result.detail.contains("nor example.com"), "{result:?}");
        assert!(!result.advice.contains("typo"), "{result:?}");
    }

    #[test]
    fn hosts_are_read_by_whole_names() {
        let text = "127.0.0.1 localhost\n10.0.0.1 a.example cloud.example # cloud2.example\n#10.0.0.2 cloud.example\n";
        assert_eq!(in_hosts(text, "Cloud.example"), ["10.0.0.1"]);
        assert!(in_hosts(text, "cloud2.example").is_empty() && in_hosts(text, "10.0.0.1").is_empty());
    }

    #[tokio::test]
    async fn a_name_server_that_is_not_there_is_told() {
        let (_dir, tree) = plant(&[("etc/resolv.conf", "nameserver 127.9.9.9\n")]);
        let results = judge(&read(&tree, &["https://cloud.example:8443".to_owned()]).await);
        assert_eq!(results.len(), 2);
        assert_eq!(
            (results[0].verdict, results[1].verdict),
            (Verdict::Failed, Verdict::Warning),
            "{results:?}"
        );
        assert_eq!(results[1].subject.as_deref(), Some("127.9.9.9"));
    }

    #[tokio::test]
    async fn an_address_needs_no_name() {
        let (_dir, tree) = plant(&[]);
        for base in ["http://127.0.0.1:1", "https://[::1]:2", "http://localhost:3"] {
            assert_eq!(judge(&read(&tree, &[base.to_owned()]).await)[0].verdict, Verdict::Ok, "{base}");
        }
    }
}

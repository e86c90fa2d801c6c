//! How the line towards the cloud is: of a few connections at once, how many come about at the first try. A first packet that is lost
//! (or whose answer is) is sent again by the kernel after a second, so a connection that takes so much longer than the fastest tells of
//! one. Only connections are made, nothing is sent: no leave is needed for it, unlike for pings, and no router answers differently.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};
use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::{dns, network, proxy, tree::Tree};

pub(super) const NAME: &str = "line";
/// Connections by each family.
const TRIES: usize = 6;
const PATIENCE: Duration = Duration::from_secs(4);
/// Milliseconds beyond the fastest one from which a packet was sent again.
const AGAIN: i64 = 900;
/// Percent of connections that may need another try: one of six is chance, two are not.
const MANY: i64 = 20;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is no address to try, and why.
    Nowhere(String),
    /// What was tried.
    Tried {
        /// Host and port, and whether they are a proxy's.
        to: (String, u16, bool),
        /// One for each family that there is an address of.
        families: Vec<Family>,
        /// A route leads out by IPv6.
        six_routed: bool,
    },
}

/// The connections of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Where to.
    pub address: IpAddr,
    /// Milliseconds, or why none came about; and whether that is for want of a route.
    pub tries: Vec<Result<i64, (String, bool)>>,
}

/// Connects. `set` is the proxy that was set from afar, `environment` gives a variable's value.
pub async fn read(
    tree: &Tree,
    set: Option<String>,
    environment: impl Fn(&str) -> Option<String>,
    bases: &[String],
) -> Seen {
    let Some(to) = proxy::first_hop(set, environment, bases) else {
        return Seen::Nowhere("the cloud's address is not known here".to_owned());
    };
    let found = match dns::find(tree, &to.0).await {
        Ok(found) => found,
        Err(why) => return Seen::Nowhere(why),
    };
    let of = |four: bool| found.iter().copied().find(|address| address.is_ipv4() == four);
    let families = join_all([of(true), of(false)].into_iter().flatten().map(|address| async move {
        Family { address, tries: join_all((0..TRIES).map(|_| one((address, to.1).into()))).await }
    }))
    .await;
    Seen::Tried { families, six_routed: !network::routes6(tree).is_empty(), to }
}

async fn one(address: SocketAddr) -> Result<i64, (String, bool)> {
    let began = Instant::now();
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX)),
        Ok(Err(e)) => Err((e.to_string(), e.kind() == io::ErrorKind::NetworkUnreachable)),
        Err(_) => Err((format!("no answer within {} s", PATIENCE.as_secs()), false)),
    }
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let ((host, port, by_proxy), families, six_routed) = match seen {
        Seen::Nowhere(why) => {
            return vec![ProbeResult::new(
                NAME,
                Verdict::Unknown,
                &format!("there is nothing to connect to: {why}"),
            )];
        }
        Seen::Tried { to, families, six_routed } => (to, families, *six_routed),
    };
    let whose = if *by_proxy { "the proxy" } else { "the cloud" };
    let works = families.iter().any(|family| family.tries.iter().any(Result::is_ok));
    let unrouted = |family: &&Family| family.tries.iter().all(|t| matches!(t, Err((_, true))));
    let mut results: Vec<ProbeResult> = Vec::new();
    for family in families {
        // An address that no route leads to is nothing missing where another works, unless a route says that it should.
        if works && unrouted(&family) && (family.address.is_ipv4() || !six_routed) {
            continue;
        }
        results.push(of(family, &format!("{whose} ({}:{port})", family.address), works));
    }
    if results.is_empty() {
        results.push(ProbeResult::new(NAME, Verdict::Unknown, &format!("{host} has no address")));
    }
    results
}

fn of(family: &Family, to: &str, works: bool) -> ProbeResult {
    let name = if family.address.is_ipv4() { "IPv4" } else { "IPv6" };
    let result = |verdict, detail: &str| ProbeResult::new(NAME, verdict, detail).of(name);
    let mut taken: Vec<i64> = family.tries.iter().filter_map(|t| t.as_ref().ok().copied()).collect();
    taken.sort_unstable();
    let Some(fastest) = taken.first().copied() else {
        let why = family.tries.iter().find_map(|t| t.as_ref().err()).map_or("", |(why, _)| why);
        let detail = format!("no connection to {to}: {why}");
        return if works {
            result(Verdict::Warning, &detail).advice(
                "what tries this family first is slow: mend the router's way out by it, or take its route away",
            )
        } else {
            result(Verdict::Failed, &detail).advice(
                "see network, dns and proxy first; then whether a firewall lets connections out to that port",
            )
        };
    };
    let at_once = taken.iter().filter(|ms| **ms < fastest + AGAIN).count();
    let (all, again) = (family.tries.len(), family.tries.len() - at_once);
    let share = i64::try_from(again * 100 / all.max(1)).unwrap_or(100);
    let median = taken[taken.len() / 2];
    let detail =
        format!("{at_once} of {all} connections to {to} came about at the first try, in {median} ms");
    let (verdict, advice) = if share > MANY {
        (
            Verdict::Warning,
            "packets are lost: look at the wireless signal or the cable (network), and at what fills the line",
        )
    } else {
        (Verdict::Ok, "")
    };
    result(verdict, &detail).value(share, Unit::Percent).threshold(MANY).advice(advice)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    type Tries<'a> = &'a [Result<i64, (&'a str, bool)>];

    fn tried(families: &[(&str, Tries<'_>)], six_routed: bool) -> Vec<ProbeResult> {
        let families = families
            .iter()
            .map(|(address, tries)| Family {
                address: address.parse().unwrap(),
                tries: tries
                    .iter()
                    .map(|t| t.map_err(|(why, unrouted)| (why.to_owned(), unrouted)))
                    .collect(),
            })
            .collect();
        judge(&Seen::Tried { to: ("cloud.example".to_owned(), 443, false), families, six_routed })
    }

    #[test]
    fn connections_that_need_another_try_tell_of_lost_packets() {
        let lost = Err(("no answer within 4 s", false));
        for (tries, verdict, share) in [
            (&[Ok(20), Ok(21), Ok(30), Ok(22), Ok(919), Ok(25)][..], Verdict::Ok, 0),
            (&[Ok(20), Ok(21), Ok(30), Ok(22), Ok(1030), Ok(25)], Verdict::Ok, 16),
            (&[Ok(20), Ok(21), Ok(30), lost, Ok(1030), Ok(25)], Verdict::Warning, 33),
            (&[Ok(2000), Ok(2010), Ok(2500), Ok(2000), Ok(2010), Ok(2500)], Verdict::Ok, 0),
            (&[lost, lost, lost, lost, lost, Ok(2)], Verdict::Warning, 83),
        ] {
            let [result] = &tried(&[("192.0.2.1", tries)], false)[..] else { panic!("one result") };
            assert_eq!((result.verdict, result.value), (verdict, Some(share)), "{result:?}");
            assert_eq!((result.threshold, result.advice.is_empty()), (Some(20), verdict == Verdict::Ok));
        }
        let all = &tried(&[("192.0.2.1", &[lost; 6])], false)[0];
        assert_eq!(all.verdict, Verdict::Failed);
        assert!(all.detail.contains("192.0.2.1:443") && !all.advice.is_empty(), "{all:?}");
    }

    #[test]
    fn ipv6_has_to_work_where_a_route_leads_out_by_it_and_nowhere_else() {
        let (good, dead, away) =
            ([Ok(9); 6], [Err(("timed out", false)); 6], [Err(("unreachable", true)); 6]);
        let verdicts = |six: Tries<'_>, routed| {
            let results = tried(&[("192.0.2.1", &good), ("2001:db8::1", six)], routed);
            results.iter().map(|r| (r.subject.clone().unwrap(), r.verdict)).collect::<Vec<_>>()
        };
        let (four, six) = (|v| ("IPv4".to_owned(), v), |v| ("IPv6".to_owned(), v));
        assert_eq!(verdicts(&good, true), [four(Verdict::Ok), six(Verdict::Ok)]);
        assert_eq!(verdicts(&dead, true), [four(Verdict::Ok), six(Verdict::Warning)]);
        assert_eq!(verdicts(&away, true), [four(Verdict::Ok), six(Verdict::Warning)]);
        assert_eq!(verdicts(&away, false), [four(Verdict::Ok)], "there is no IPv6 here, and none is missing");
        assert_eq!(tried(&[("2001:db8::1", &away)], false)[0].verdict, Verdict::Failed, "nothing works");
        assert_eq!(tried(&[], true)[0].verdict, Verdict::Unknown);
    }

    #[tokio::test]
    async fn connections_are_made_to_the_first_hop() {
        let (_dir, tree) = plant(&[]);
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = there.local_addr().unwrap();
        let shut = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let base = [format!("http://{open}")];
        let none = |_: &str| None;
        let result = judge(&read(&tree, None, none, &base).await).remove(0);
        assert_eq!((result.verdict, result.value), (Verdict::Ok, Some(0)), "{result:?}");
        let result = judge(&read(&tree, Some(format!("http://me:x@{shut}")), none, &base).await).remove(0);
        assert_eq!(result.verdict, Verdict::Failed, "{result:?}");
        assert!(result.detail.contains("the proxy") && !result.detail.contains("me:x"), "{result:?}");
        assert_eq!(judge(&read(&tree, None, none, &[]).await)[0].verdict, Verdict::Unknown);
    }
}

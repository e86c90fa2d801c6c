//! Interfaces: link, addresses, errors, signal; and the route out.

use std::collections::BTreeSet;

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::tree::Tree;

pub(super) const NAME: &str = "network";
/// Percent of a wireless signal below which links break.
const SIGNAL: i64 = 40;
/// Packets in a thousand that may be damaged before a cable or port is to blame.
const ERRORS_PER_MILLE: u64 = 10;
/// So few damaged packets say nothing.
const FEW_ERRORS: u64 = 100;
/// The flag of a route that is in use.
const UP: u32 = 1;
/// The most interfaces that are told.
const MOST: usize = 16;

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `up`, `down`, `unknown`, …
    pub state: String,
    /// Its addresses.
    pub addresses: BTreeSet<String>,
    /// It is a way out of this network.
    pub routes: bool,
    /// Packets, and damaged ones, both ways.
    pub packets: (u64, u64),
    /// Percent, of a wireless one.
    pub signal: Option<i64>,
}

impl Interface {
    /// Those of this system.
    pub(crate) fn look(tree: &Tree) -> Vec<Self> {
        read(tree, &addresses())
    }
}

/// Looks. `addresses`: (interface, address).
#[must_use]
pub fn read(tree: &Tree, addresses: &[(String, String)]) -> Vec<Interface> {
    let routes = routes(tree);
    let wireless = tree.text("proc/net/wireless").unwrap_or_default();
    tree.names("sys/class/net")
        .into_iter()
        // Virtual ones (of containers, above all) tell nothing of the network, unless the way out goes through one.
        .filter(|name| {
            name != "lo" && (tree.has(&format!("sys/class/net/{name}/device")) || routes.contains(name))
        })
        .take(MOST)
        .map(|name| {
            let folder = format!("sys/class/net/{name}");
            let sum = |files: [&str; 2]| {
                files
                    .iter()
                    .filter_map(|file| tree.number(&format!("{folder}/statistics/{file}")))
                    .fold(0, |sum: u64, n| sum.saturating_add(u64::try_from(n).unwrap_or(0)))
            };
            Interface {
                state: tree.line(&format!("{folder}/operstate")).unwrap_or_default(),
                addresses: addresses.iter().filter(|(of, _)| *of == name).map(|(_, a)| a.clone()).collect(),
                routes: routes.contains(&name),
                packets: (sum(["rx_packets", "tx_packets"]), sum(["rx_errors", "tx_errors"])),
                signal: signal(&wireless, &name),
                name,
            }
        })
        .collect()
}

/// Interfaces with a default route.
fn routes(tree: &Tree) -> BTreeSet<String> {
    &routes4(tree) | &routes6(tree)
}

fn routes4(tree: &Tree) -> BTreeSet<String> {
    let v4 = tree.text("proc/net/route").unwrap_or_default();
    let v4 = v4.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (name, to, flags, mask) = (words.first()?, words.get(1)?, words.get(3)?, words.get(7)?);
        let up = u32::from_str_radix(flags, 16).ok()? & UP != 0;
        (up && *to == "00000000" && *mask == "00000000").then(|| (*name).to_owned())
    });
    v4.collect()
}

/// Interfaces with a default route of IPv6.
pub(super) fn routes6(tree: &Tree) -> BTreeSet<String> {
    let v6 = tree.text("proc/net/ipv6_route").unwrap_or_default();
    let v6 = v6.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (to, length, flags, name) = (words.first()?, words.get(1)?, words.get(8)?, words.get(9)?);
        let up = u32::from_str_radix(flags, 16).ok()? & UP != 0;
        (up && to.bytes().all(|b| b == b'0') && *length == "00" && *name != "lo").then(|| (*name).to_owned())
    });
    v6.collect()
}

/// A signal in percent: by its level in dBm (-100 is none, -50 is full), else by the driver's own quality of 70.
fn signal(wireless: &str, name: &str) -> Option<i64> {
    let line = wireless.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
    let mut words = line.split_ascii_whitespace().skip(1);
    let mut number = || words.next()?.trim_end_matches('.').parse::<i64>().ok();
    let quality = number();
    let percent = match number() {
        Some(level @ -200..=-1) => 2 * (level + 100),
        _ => quality?.clamp(0, 70) * 100 / 70,
    };
    Some(percent.clamp(0, 100))
}

/// Judges.
#[must_use]
pub fn judge(interfaces: &[Interface]) -> Vec<ProbeResult> {
    let mut results: Vec<ProbeResult> = Vec::new();
    if !interfaces.iter().any(|i| i.routes) {
        let names: Vec<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
        let there = if names.is_empty() { "there is no interface".to_owned() } else { names.join(", ") };
        results.push(
            ProbeResult::new(NAME, Verdict::Failed, &format!("no route leads out of this device ({there})"))
                .advice(
                    "look at the cable, the wireless settings and DHCP: no interface was given a gateway",
                ),
        );
    }
    results.extend(interfaces.iter().map(one));
    results
}

fn one(interface: &Interface) -> ProbeResult {
    let Interface { name, state, addresses, routes, packets: (packets, errors), signal } = interface;
    let result = |verdict, detail: &str| ProbeResult::new(NAME, verdict, detail).of(name);
    // Drivers that do not know say `unknown` for a link that works.
    let up = matches!(state.as_str(), "up" | "unknown");
    if !up {
        let detail = format!("{}: no link", if state.is_empty() { "state not known" } else { state });
        return if *routes {
            result(Verdict::Failed, &detail)
                .advice("the route out goes through it: look at its cable or wireless settings")
        } else {
            result(Verdict::Ok, &format!("{detail}; it is not in use"))
        };
    }
    let list: Vec<&str> = addresses.iter().take(6).map(String::as_str).collect();
    let list = if list.is_empty() { "no address".to_owned() } else { list.join(", ") };
    let mut detail = format!("{list}{}", if *routes { ", the way out" } else { "" });
    if let Some(signal) = signal {
        detail += &format!(", signal {signal} %");
    }
    if *errors > 0 {
        detail += &format!(", {errors} damaged of {packets} packets");
    }
    if let Some(signal) = signal.filter(|s| *s < SIGNAL) {
        return result(Verdict::Warning, &detail)
            .value(signal, Unit::Percent)
            .threshold(SIGNAL)
            .advice("bring the access point or the antenna nearer, or use a cable");
    }
    let many = u128::from(*errors) * 1000 >= u128::from(*packets) * u128::from(ERRORS_PER_MILLE);
    if *errors > FEW_ERRORS && many {
        return result(Verdict::Warning, &detail)
            .value(i64::try_from(*errors).unwrap_or(i64::MAX), Unit::Count)
            .threshold(i64::try_from(FEW_ERRORS).unwrap_or(0))
            .advice("change the cable, then the port: one packet in a hundred or more arrives damaged");
    }
    if addresses.is_empty() && *routes {
        return result(Verdict::Failed, &detail).advice("it has a route and no address: look at DHCP");
    }
    match signal {
        Some(signal) => result(Verdict::Ok, &detail).value(*signal, Unit::Percent).threshold(SIGNAL),
        None => result(Verdict::Ok, &detail),
    }
}

/// This machine's addresses: (interface, address).
#[must_use]
pub fn addresses() -> Vec<(String, String)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    all.filter_map(|entry| {
        let address = entry.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().to_string(),
            (_, Some(v6)) => v6.ip().to_string(),
            _ => return None,
        };
        Some((entry.interface_name, ip))
    })
    .take(1024)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    fn up(name: &str) -> Interface {
        let addresses = ["192.0.2.7".to_owned()].into();
        Interface {
            name: name.to_owned(),
            state: "up".to_owned(),
            addresses,
            routes: true,
            ..Interface::default()
        }
    }

    #[test]
    fn interfaces_are_judged_one_by_one() {
        for (interface, verdict, word) in [
            (up("eth0"), Verdict::Ok, "192.0.2.7, the way out"),
            (Interface { state: "unknown".to_owned(), ..up("wwan0") }, Verdict::Ok, "192.0.2.7"),
            (Interface { state: "down".to_owned(), ..up("eth0") }, Verdict::Failed, "no link"),
            (Interface { state: "down".to_owned(), routes: false, ..up("eth1") }, Verdict::Ok, "not in use"),
            (Interface { addresses: BTreeSet::new(), ..up("eth0") }, Verdict::Failed, "no address"),
            (
                Interface { addresses: BTreeSet::new(), routes: false, ..up("eth0") },
                Verdict::Ok,
                "no address",
            ),
            (Interface { signal: Some(39), ..up("wlan0") }, Verdict::Warning, "signal 39 %"),
            (Interface { signal: Some(40), ..up("wlan0") }, Verdict::Ok, "signal 40 %"),
            (Interface { packets: (10_000, 100), ..up("eth0") }, Verdict::Ok, "100 damaged"),
            (Interface { packets: (10_000, 101), ..up("eth0") }, Verdict::Warning, "101 damaged"),
            (Interface { packets: (1_000_000, 101), ..up("eth0") }, Verdict::Ok, "101 damaged"),
        ] {
            let results = judge(&[up("other"), interface]);
            assert_eq!(results[1].verdict, verdict, "{results:?}");
            assert!(results[1].detail.contains(word), "{results:?}");
        }
    }

    #[test]
    fn without_a_route_out_the_device_is_alone() {
        let results = judge(&[Interface { routes: false, ..up("eth0") }]);
        assert_eq!(results[0].verdict, Verdict::Failed);
        assert!(results[0].detail.contains("no route leads out"), "{results:?}");
        assert!(judge(&[])[0].detail.contains("no interface"));
    }

    #[test]
    fn the_kernels_files_are_read() {
        let (_dir, tree) = plant(&[
            ("sys/class/net/lo/operstate", "unknown"),
            ("sys/class/net/docker0/operstate", "up"),
            ("sys/class/net/tun0/operstate", "unknown"),
            ("sys/class/net/eth0/device/vendor", "x"),
            ("sys/class/net/eth0/operstate", "up\n"),
            ("sys/class/net/eth0/statistics/rx_packets", "90"),
            ("sys/class/net/eth0/statistics/tx_packets", "10"),
            ("sys/class/net/eth0/statistics/rx_errors", "7"),
            ("sys/class/net/wlan0/device/vendor", "x"),
            (
                "proc/net/route",
                "Iface Destination Gateway Flags RefCnt Use Metric Mask\n\
                eth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\neth0 0001A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n",
            ),
            (
                "proc/net/ipv6_route",
                "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                00000000000000000000000000000000 00000400 00000001 00000000 00000003 tun0\n\
                00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n",
            ),
            (
                "proc/net/wireless",
                "Inter-| sta-|   Quality\n face | tus | link level noise\n wlan0: 0000   54.  -56.  -256        0\n",
            ),
        ]);
        let addresses =
            [("eth0", "192.0.2.7"), ("docker0", "172.17.0.1")].map(|(n, a)| (n.to_owned(), a.to_owned()));
        let seen = read(&tree, &addresses);
        let names: Vec<_> = seen.iter().map(|i| (i.name.as_str(), i.routes)).collect();
        assert_eq!(names, [("eth0", true), ("tun0", true), ("wlan0", false)]);
        assert_eq!((seen[0].packets, seen[0].addresses.len()), ((100, 7), 1));
        assert_eq!((seen[0].signal, seen[2].signal), (None, Some(88)));
        assert_eq!(signal(" wlan0: 0000  35.  0.  0.", "wlan0"), Some(50), "a driver that gives no level");
    }

    #[test]
    fn this_machine_has_its_loopback_address() {
        assert!(addresses().iter().any(|(name, address)| name == "lo" && address == "127.0.0.1"));
    }
}

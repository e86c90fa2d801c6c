//! From a verb and its arguments, as people write them, to what a device is told.

use copal_protocol::{
    channel::Question,
    documents::{Act, MAX_TTL_S},
    network,
};
use serde_json::{Map, Value};

use crate::{
    auth,
    error::{Problem, Result},
};

/// Every verb.
pub(crate) const VERBS: &[&str] = &[
    "restart_service",
    "stop_service",
    "start_service",
    "purge_data",
    "pause_updates",
    "resume_updates",
    "reboot",
    "check_update",
    "blink",
    "set_network",
    "probes",
    "network",
];
/// The longest a device blinks, seconds; devices refuse more.
const MAX_BLINK_S: u32 = 600;
/// The most checks asked for by name.
const MAX_NAMES: usize = 64;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Something changes: signed.
    Act(Act),
    /// Nothing changes.
    Ask(Question),
}

/// What a person must be allowed to for a verb, by whether it acts.
pub(crate) fn needs(verb: &str, acts: bool) -> auth::Act {
    match (acts, verb) {
        (false, _) => auth::Act::Read,
        // It can lead a device's way to the cloud, and its clock, wherever somebody likes.
        (true, "set_network") => auth::Act::Manage,
        (true, _) => auth::Act::Deploy,
    }
}

impl Wanted {
    /// What a person must be allowed to.
    pub(crate) fn needs(&self) -> auth::Act {
        match self {
            Self::Act(act) => needs(act.verb(), true),
            Self::Ask(_) => auth::Act::Read,
        }
    }

    /// Whether it takes something away, or may cut a device off: nobody asks that of many devices by mistake.
    pub(crate) const fn is_grave(&self) -> bool {
        use Act::{PurgeData, Reboot, SetNetwork, StopService};
        matches!(self, Self::Act(PurgeData { .. } | Reboot {} | SetNetwork { .. } | StopService { .. }))
    }
}

/// Reads a verb and its arguments.
///
/// # Errors
/// 422 `verb_unknown`, `args_invalid`.
pub(crate) fn parse(verb: &str, args: &Map<String, Value>) -> Result<Wanted> {
    if !VERBS.contains(&verb) {
        let verb: String = verb.chars().take(40).collect();
        return Err(Problem::invalid(
            "verb_unknown",
            format!("There is no verb {verb:?}; there are {}.", VERBS.join(", ")),
        ));
    }
    let bad = |why: String| Problem::invalid("args_invalid", format!("The arguments of {verb}: {why}."));
    if args.contains_key("verb") {
        return Err(bad("the verb stands beside them, not among them".to_owned()));
    }
    let mut object = args.clone();
    object.insert("verb".to_owned(), verb.into());
    let object = Value::Object(object);
    let wanted = if matches!(verb, "probes" | "network") {
        serde_json::from_value(object).map(Wanted::Ask)
    } else {
        serde_json::from_value(object).map(Wanted::Act)
    };
    let wanted = wanted.map_err(|e| bad(e.to_string().chars().take(200).collect()))?;
    let within = |name: &str, n: u32, max: u32| {
        if n == 0 || n > max { Err(bad(format!("{name} is {n}; it is 1 to {max}"))) } else { Ok(()) }
    };
    match &wanted {
        Wanted::Act(Act::Blink { for_s }) => within("for_s", *for_s, MAX_BLINK_S)?,
        Wanted::Act(Act::PauseUpdates { for_s: Some(for_s) }) => within("for_s", *for_s, MAX_TTL_S)?,
        Wanted::Ask(Question::Probes { names }) => {
            let word = |name: &String| {
                (1..=64).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            if names.len() > MAX_NAMES || !names.iter().all(word) {
                return Err(bad(format!("names are at most {MAX_NAMES} words of a-z, 0-9 and _")));
            }
        }
        Wanted::Act(Act::SetNetwork { proxy, ntp }) => {
            network::check(proxy.as_deref(), ntp.as_deref()).map_err(bad)?;
        }
        Wanted::Act(_) | Wanted::Ask(Question::Network {}) => {}
    }
    Ok(wanted)
}

/// Arguments as they may be shown and kept: a proxy's user and password are taken out.
pub(crate) fn shown(args: &Map<String, Value>) -> Map<String, Value> {
    let mut shown = args.clone();
    if let Some(Value::String(proxy)) = shown.get_mut("proxy") {
        *proxy = network::shown_proxy(proxy);
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(verb: &str, args: &Value) -> Result<Wanted> {
        parse(verb, args.as_object().unwrap())
    }

    #[test]
    fn every_verb_is_read_and_is_the_protocols() {
        let service = json!({"service": "web"});
        for verb in VERBS {
            let args = match *verb {
                "restart_service" | "stop_service" | "start_service" => service.clone(),
                "blink" => json!({"for_s": 30}),
                "set_network" => json!({"ntp": []}),
                _ => json!({}),
            };
            match of(verb, &args).unwrap() {
                Wanted::Act(act) => assert_eq!(act.verb(), *verb),
                Wanted::Ask(Question::Probes { names }) => assert!(names.is_empty() && *verb == "probes"),
                Wanted::Ask(Question::Network {}) => assert_eq!(*verb, "network"),
            }
        }
    }

    #[test]
    fn what_a_device_would_refuse_is_refused_here() {
        for (verb, args, code) in [
            ("sing", json!({}), "verb_unknown"),
            ("Reboot", json!({}), "verb_unknown"),
            ("reboot", json!({"now": true}), "args_invalid"),
            ("reboot", json!({"verb": "blink"}), "args_invalid"),
            ("restart_service", json!({}), "args_invalid"),
            ("restart_service", json!({"service": "../etc"}), "args_invalid"),
            ("restart_service", json!({"service": 3}), "args_invalid"),
            ("purge_data", json!({"volume": ""}), "args_invalid"),
            ("blink", json!({}), "args_invalid"),
            ("blink", json!({"for_s": 0}), "args_invalid"),
            ("blink", json!({"for_s": 601}), "args_invalid"),
            ("pause_updates", json!({"for_s": 2_592_001}), "args_invalid"),
            ("probes", json!({"names": ["a b"]}), "args_invalid"),
            ("network", json!({"names": []}), "args_invalid"),
            ("set_network", json!({}), "args_invalid"),
            ("set_network", json!({"proxy": "proxy:3128"}), "args_invalid"),
            ("set_network", json!({"ntp": ["a b"]}), "args_invalid"),
            ("probes", json!({"names": vec!["a"; 65]}), "args_invalid"),
        ] {
            assert_eq!(of(verb, &args).unwrap_err().code(), code, "{verb} {args}");
        }
        assert!(of("pause_updates", &json!({"for_s": 2_592_000})).is_ok());
        assert!(of("purge_data", &json!({"volume": "data"})).is_ok());
    }

    #[test]
    fn a_proxys_password_is_neither_shown_nor_complained_of() {
        let args = json!({"proxy": "http://me:hunter2@proxy:3128", "ntp": ["ntp.example"]});
        assert!(of("set_network", &args).unwrap().is_grave());
        let kept = shown(args.as_object().unwrap());
        assert_eq!(kept["proxy"], "http://(redacted)@proxy:3128");
        assert_eq!(kept["ntp"], args["ntp"]);
        let problem = of("set_network", &json!({"proxy": "http://me:hunter2@proxy/path"})).unwrap_err();
        assert!(!format!("{problem:?} {problem}").contains("hunter2"), "{problem}");
    }
}

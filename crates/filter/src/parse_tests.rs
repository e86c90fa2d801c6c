//! What is read, and what is said of what is not.

use std::collections::BTreeMap;

use super::version;
use crate::{Device, Error, Filter, MAX_DEPTH, MAX_TERMS};

fn canonical(text: &str) -> String {
    text.parse::<Filter>().unwrap_or_else(|e| panic!("{}", e.pointed(text))).to_string()
}

fn error(text: &str) -> Error {
    text.parse::<Filter>().expect_err(text)
}

#[test]
fn text_is_read_and_printed_in_one_way() {
    for (text, shown) in [
        (r#"tag.site = "paris" and online = false"#, r#"tag.site = "paris" and online = false"#),
        ("tag.site=paris AND NOT online", r#"tag.site = "paris" and not online = true"#),
        ("online != true", "online = false"),
        (
            "name ~ pi-* or (release != 1.2.0 and not pinned)",
            r#"name ~ "pi-*" or release != "1.2.0" and not pinned = true"#,
        ),
        ("(online or pinned) and on_target", "(online = true or pinned = true) and on_target = true"),
        ("not (online and pinned)", "not (online = true and pinned = true)"),
        ("not not online", "not not online = true"),
        ("((online))", "online = true"),
        ("online and (pinned and on_target)", "online = true and pinned = true and on_target = true"),
        ("release < 1.2", r#"release < "1.2.0""#),
        ("agent >= v2", r#"agent >= "2.0.0""#),
        ("last_seen > 120m", "last_seen > 2h"),
        ("last_seen < 0h", "last_seen < 0s"),
        ("tag.ring in (canary, 'early birds')", r#"tag.ring in ("canary", "early birds")"#),
        ("has tag.a/b.c-d_e", "has tag.a/b.c-d_e"),
        (r#"name = 'a "b" \\ c'"#, r#"name = "a \"b\" \\ c""#),
        ("name = ünïcode", r#"name = "ünïcode""#),
        (r#"name = """#, r#"name = """#),
    ] {
        assert_eq!(canonical(text), shown, "{text}");
        assert_eq!(canonical(shown), shown, "the canonical text reads back as itself");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_column_and_what_was_expected() {
    let told = [
        "",
        "nam = x",
        "tags.site = x",
        "health = bad",
        "check.disk = red",
        "check. = ok",
        "check.Disk = ok",
        "colour = x",
        "tag. = x",
        "name =",
        "name = and",
        "name x",
        "name < x",
        "online < true",
        "online = maybe",
        "last_seen = 2h",
        "last_seen > 2",
        "last_seen > 99999999999999999999w",
        "release < soon",
        "state = acepted",
        "state in (accepted, lost)",
        "has online",
        "has",
        "name in x",
        "name in (a b)",
        "name in ()",
        "(online",
        "online)",
        "online and",
        "online online",
        "online && pinned",
        "!online",
        "name == x",
        "name = \"x",
        r#"name = "a\nb""#,
        "\"paris\" = tag.site",
        "name ~ *a*a*a*a*a*a*a*a*",
        "name = a\u{7}b",
    ];
    let shown: Vec<String> = told.iter().map(|text| format!("{text:?}\n  {}", error(text))).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn a_filter_is_bounded() {
    let nested = |n: usize| format!("{}online{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(canonical(&nested(MAX_DEPTH)), "online = true");
    assert_eq!(error(&nested(MAX_DEPTH + 1)).column, MAX_DEPTH + 1);
    assert!(error(&format!("{}online", "not ".repeat(MAX_DEPTH + 1))).message.contains("16"));
    let terms = |n: usize| vec!["online"; n].join(" or ");
    canonical(&terms(MAX_TERMS));
    assert!(error(&terms(MAX_TERMS + 1)).message.contains("50 terms"));
    assert!(error(&format!("name in ({})", vec!["a"; 51].join(","))).message.contains("50 terms"));
    assert!(error(&format!("name = {}", "x".repeat(256))).message.contains("255"));
    let long = error(&" ".repeat(1_001));
    assert!(long.message.contains("1000"), "{long}");
}

#[test]
fn versions_are_read_as_people_write_them() {
    let read = |text: &str| version(text).map(|v| v.to_string());
    assert_eq!(read("1.2.3"), Some("1.2.3".to_owned()));
    assert_eq!(read("v1.2"), Some("1.2.0".to_owned()));
    assert_eq!(read("2-rc.1"), Some("2.0.0-rc.1".to_owned()));
    for none in ["", "v", "Debian GNU/Linux 12", "1.2.3.4", "vv1", "1..2"] {
        assert_eq!(read(none), None, "{none}");
    }
}

#[test]
fn what_is_not_there_is_equal_to_nothing_and_not_turns_every_judgement_around() {
    let tags = BTreeMap::from([("ring".to_owned(), "canary".to_owned())]);
    let checks = BTreeMap::from([("disk".to_owned(), "failed".to_owned())]);
    let device = Device {
        name: "pi-1",
        id: "00ff",
        state: "accepted",
        online: false,
        seen_ago: None,
        agent: Some("0.3.0"),
        os: Some("Debian GNU/Linux 12"),
        release: None,
        reason: None,
        arch: "arm64",
        device_type: "raspberrypi4",
        on_target: false,
        pinned: false,
        health: Some("failed"),
        checks: &checks,
        tags: &tags,
    };
    let is = |text: &str| text.parse::<Filter>().unwrap().matches(&device);
    for yes in [
        "tag.ring = canary",
        "tag.site != paris",
        "not has tag.site",
        "release != 1.2.0",
        "not release < 1.2.0",
        "agent >= 0.3 and agent < 0.4",
        "os ~ Debian*",
        "not os > 1",
        "not last_seen > 1s",
        "not has last_seen",
        "state in (pending, accepted)",
        "name ~ 'pi-?' or online",
        "health = failed and check.disk in (warning, failed)",
        "check.clock != ok and not has check.clock",
    ] {
        assert!(is(yes), "{yes}");
        assert!(!is(&format!("not ({yes})")), "{yes}");
    }
    for no in
        ["tag.site = paris", "tag.site ~ *", "release >= 0.0.0", "last_seen < 1d", "os < 99", "has reason"]
    {
        assert!(!is(no), "{no}");
    }
}

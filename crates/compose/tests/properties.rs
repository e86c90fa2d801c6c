//! What holds for any text and any spelling.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{fs, path::Path};

use copal_compose::{MAX_FILE, Options, code, parse};
use proptest::prelude::*;

fn options() -> Options<'static> {
    Options::new("docker-compose.yml", "amd64", "generic")
}

fn bytes(text: &str) -> String {
    let mut project = parse(text, &options()).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"));
    project.warnings.clear();
    serde_json::to_string(&project).unwrap()
}

/// Groups of lines that mean the same, each spelled in several ways.
const SPELLINGS: &[&[&str]] = &[
    &["image: app", "image: \"app\"", "\"image\": 'app'"],
    &[
        "ports: [\"8080:80\", \"443:443\", 53/udp]",
        "ports: [\"53/UDP\", \"443:443/tcp\", \"8080:80\"]",
        "ports: [{target: 443, published: \"443\"}, {published: 8080, target: 80, protocol: tcp}, {target: 53, protocol: udp}]",
    ],
    &["expose: [3000-3002]", "expose: [\"3002\", 3000/tcp, 3001]"],
    &["environment: {A: 1, B: two}", "environment: [B=two, A=1]", "environment: {B: \"two\", A: '1'}"],
    &["restart: \"no\"", "restart: no", "restart: false"],
    &[
        "mem_limit: 64m",
        "mem_limit: 64MB",
        "mem_limit: 67108864",
        "deploy: {resources: {limits: {memory: 64M}}}",
    ],
    &["stop_grace_period: 90s", "stop_grace_period: 1m30s", "stop_grace_period: 1.5m"],
    &["cap_add: [NET_ADMIN, SYS_TIME]", "cap_add: [sys_time, CAP_NET_ADMIN]"],
    &["init: true", "init: yes", "init: True"],
    &["tmpfs: /tmp", "tmpfs: [/tmp/]", "volumes: [{type: tmpfs, target: /tmp}]"],
    &[
        "depends_on: [db]",
        "depends_on: {db: {condition: service_started}}",
        "depends_on: {db: {required: true}}",
    ],
    &["command: sh -c 'a b'", "command: [sh, -c, a b]", "command: \"sh -c \\\"a b\\\"\""],
    &[
        "healthcheck: {test: check it, interval: 60s}",
        "healthcheck: {interval: 1m, test: [CMD-SHELL, check it]}",
    ],
    &["labels: {a: \"1\", b: \"\"}", "labels: [b, a=1]", "labels: [\"b=\", a=1]"],
    &["extra_hosts: {a: 10.0.0.1, b: \"::1\"}", "extra_hosts: [\"b:[::1]\", \"a=10.0.0.1\"]"],
    &["cpus: 0.5", "cpus: \"0.50\"", "cpus: .5"],
    &["cpuset: \"0-3\"", "cpuset: \"3,2,0,1\"", "cpuset: '0,1-3'"],
    &["stop_signal: SIGINT", "stop_signal: int"],
    &["security_opt: [no-new-privileges]", "security_opt: [\"no-new-privileges:true\"]"],
    &["devices: [/dev/a, \"/dev/b:/dev/c:wr\"]", "devices: [\"/dev/b:/dev/c:rw\", \"/dev/a:/dev/a:rwm\"]"],
    &["ulimits: {nofile: 1024}", "ulimits: {nofile: {hard: 1024, soft: 1024}}"],
    &["networks: [default]", "networks: {default: }", "networks: {default: {}}"],
    &["user: 1000", "user: \"1000\""],
    &["group_add: [video, 20]", "group_add: [\"20\", video]"],
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn equal_meaning_is_equal_bytes(
        order in Just((0..SPELLINGS.len()).collect::<Vec<_>>()).prop_shuffle(),
        choices in prop::collection::vec(any::<prop::sample::Index>(), SPELLINGS.len()),
        services_first in any::<bool>(),
        flow in any::<bool>(),
    ) {
        let plain: Vec<&str> = SPELLINGS.iter().map(|group| group[0]).collect();
        let varied: Vec<&str> = order.iter().map(|i| SPELLINGS[*i][choices[*i].index(SPELLINGS[*i].len())]).collect();
        // Two `volumes` or `deploy` never meet: each stands in one group only.
        let file = |lines: &[&str], app_first: bool, flow: bool| {
            let app = if flow {
                format!("  app: {{{}}}\n", lines.join(", "))
            } else {
                format!("  app:\n{}", lines.iter().map(|l| format!("    {l}\n")).collect::<String>())
            };
            let db = "  db: {image: db}\n";
            if app_first { format!("services:\n{app}{db}") } else { format!("services:\n{db}{app}") }
        };
        prop_assert_eq!(bytes(&file(&plain, true, false)), bytes(&file(&varied, services_first, flow && !varied.contains(&"networks: {default: }"))));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}|[ \\n:{}\\[\\]&*<>!|\"'$%a-c0-9-]{0,200}") {
        let _ = parse(&text, &options());
        let _ = parse(&format!("services:\n  a:\n    image: a\n    command: {text}\n"), &options());
    }

    #[test]
    fn no_damage_to_a_real_file_makes_it_panic(file in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(), insert in "[ \\n:{}\\[\\]&*!\"'$~,-]{0,3}", skip in 0_usize..40) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good");
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "yml")).collect();
        files.sort();
        let text = fs::read_to_string(file.get(&files)).unwrap();
        let mut chars: Vec<char> = text.chars().collect();
        let at = cut.index(chars.len());
        let end = (at + skip).min(chars.len());
        chars.splice(at..end, insert.chars());
        let damaged: String = chars.into_iter().collect();
        if let Err(problems) = parse(&damaged, &options()) {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(problem.line <= damaged.lines().count() as u64 + 1);
                prop_assert!(!problem.to_string().chars().any(|c| c.is_control() && c != '\n'), "{problem:?}");
            }
        }
    }

    #[test]
    fn numbers_and_paths_of_any_kind_are_read_or_refused(
        key in prop::sample::select(vec!["ports", "expose", "volumes", "tmpfs", "devices", "cpus", "mem_limit", "cpuset", "stop_grace_period", "ulimits", "extra_hosts", "security_opt", "device_cgroup_rules", "env_file", "dns", "networks"]),
        value in "[0-9a-z./:,=\\-]{1,30}",
    ) {
        let _ = parse(&format!("services: {{a: {{image: a, {key}: [\"{value}\"]}}}}"), &options());
        let _ = parse(&format!("services: {{a: {{image: a, {key}: \"{value}\"}}}}"), &options());
    }
}

fn only_code(text: &str) -> &'static str {
    let problems = parse(text, &options()).unwrap_err();
    problems[0].code
}

#[test]
fn a_file_that_is_too_large_or_too_deep_is_refused() {
    assert_eq!(only_code(&format!("services: {{a: {{image: \"{}\"}}}}", "a".repeat(MAX_FILE))), code::LIMIT);
    assert_eq!(only_code(&format!("a: {}{}", "[".repeat(2000), "]".repeat(2000))), code::LIMIT);
    let deep: String = (0..300).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert_eq!(only_code(&deep), code::LIMIT);
}

#[test]
fn aliases_cannot_unfold_to_more_than_a_file_may_hold() {
    let scalar = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(60_000), "*a, ".repeat(5_000));
    assert_eq!(only_code(&scalar), code::LIMIT);
    let merges = format!("a: &a {{k: v}}\nservices:\n{}", "  ? {<<: *a}\n  : x\n".repeat(2_000));
    assert!(parse(&merges, &options()).is_err());
}

#[test]
fn more_services_than_a_device_can_run_are_refused() {
    let many: String = (0..101).map(|i| format!("  s{i}: {{image: a}}\n")).collect();
    assert_eq!(only_code(&format!("services:\n{many}")), code::LIMIT);
    let full: String = (0..100).map(|i| format!("  s{i}: {{image: a}}\n")).collect();
    assert_eq!(parse(&format!("services:\n{full}"), &options()).unwrap().services.len(), 100);
}

#[test]
fn problems_are_bounded_and_sorted() {
    let many: String = (0..500).map(|i| format!("    wrong_key_{i}: x\n")).collect();
    let problems = parse(&format!("services:\n  a:\n    image: a\n{many}"), &options()).unwrap_err();
    assert_eq!(problems.len(), 100);
    assert!(problems.is_sorted_by_key(|p| p.line));
}

#[test]
fn a_dockerfile_alone_is_one_service_called_main() {
    let project =
        copal_compose::single(copal_compose::BuildSpec { context: ".".to_owned(), ..Default::default() });
    assert_eq!(project.services.keys().map(copal_protocol::ids::Name::as_str).collect::<Vec<_>>(), ["main"]);
}

#[test]
fn many_services_may_share_one_anchor() {
    let services: String =
        (0..90).map(|i| format!("  s{i}:\n    restart: \"no\"\n    <<: *s\n    logging: *l\n")).collect();
    let text = format!(
        "x-l: &l {{driver: local}}\nx-s: &s {{image: a, restart: always, labels: {{a: b}}}}\nservices:\n{services}"
    );
    let project = parse(&text, &options()).unwrap();
    assert_eq!(project.services.len(), 90);
    for service in project.services.values() {
        // What stands beside the merge wins, wherever it stands.
        assert!(
            service.spec.is_one_shot() && service.spec.logging.is_some() && service.spec.labels.len() == 1
        );
    }
}

#[test]
fn editors_of_other_systems_change_nothing() {
    let text = "services:\n  a:\n    image: a\n    command: |\n      one\n      two\n";
    assert_eq!(bytes(text), bytes(&text.replace('\n', "\r\n")));
    assert_eq!(bytes(text), bytes(&format!("\u{feff}{text}")));
    assert_eq!(bytes(text), bytes(&format!("---\n{text}...\n")));
}

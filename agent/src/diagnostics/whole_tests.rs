//! Checks as a whole: on files that make no sense, on a machine that lacks everything, and where something hangs.

use std::fs;

use copal_protocol::diagnosis::{PROBES, ProbeResult, Verdict};
use proptest::prelude::*;

use super::*;
use crate::{clock::build_time, report::Status};

/// Every file that a reader looks at, with a content that makes sense.
const FILES: &[(&str, &str)] = &[
    ("dev/kmsg", "6,1,5,-;fine\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 900 kB\n"),
    ("proc/pressure/memory", "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    ("proc/vmstat", "oom_kill 0\n"),
    ("proc/uptime", "100.00 90.00\n"),
    (
        "proc/self/mountinfo",
        "22 1 179:2 / / rw - ext4 /dev/root rw\n30 22 179:4 / /data rw - ext4 /dev/mmcblk0p4 rw\n",
    ),
    ("proc/net/route", "Iface Destination\neth0 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\n"),
    ("proc/net/ipv6_route", "0 00 0 00 0 0 0 0 1 eth0\n"),
    ("proc/net/wireless", "a\nb\n eth0: 0000 50. -60. -256\n"),
    ("proc/7/comm", "copal-agent\n"),
    ("proc/7/status", "VmRSS: 7000 kB\n"),
    ("proc/7/stat", "7 (copal-agent) S 1 1\n"),
    ("run/systemd/timesync/synchronized", ""),
    ("sys/block/mmcblk0/device/life_time", "0x01 0x01\n"),
    ("sys/block/mmcblk0/device/pre_eol_info", "0x01\n"),
    ("sys/class/hwmon/hwmon0/name", "rpi_volt\n"),
    ("sys/class/hwmon/hwmon0/in0_lcrit_alarm", "0\n"),
    ("sys/class/hwmon/hwmon0/temp1_input", "40000\n"),
    ("sys/class/net/eth0/device", "x"),
    ("sys/class/net/eth0/operstate", "up\n"),
    ("sys/class/net/eth0/statistics/rx_errors", "0\n"),
    ("sys/class/net/eth0/statistics/rx_packets", "9\n"),
    ("sys/class/thermal/cooling_device0/cur_state", "0\n"),
    ("sys/class/thermal/cooling_device0/type", "cpufreq-cpu0\n"),
    ("sys/class/thermal/thermal_zone0/temp", "40000\n"),
    ("sys/class/thermal/thermal_zone0/type", "cpu\n"),
    ("sys/dev/block/179:4/partition", "4\n"),
    ("sys/dev/block/179:4/size", "900\n"),
    ("sys/dev/block/179:4/start", "100\n"),
    ("sys/dev/block/179:4/stat", "9 0 9 9 1000 0 8 9000 0 9 9\n"),
    ("sys/dev/block/size", "1000\n"),
    ("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n"),
    ("sys/fs/cgroup/docker/aa/memory.events", "oom_kill 0\n"),
    ("sys/fs/ext4/mmcblk0p4/errors_count", "0\n"),
    ("sys/fs/ext4/mmcblk0p4/last_error_func", "x\n"),
];

/// All that is read of files, judged.
fn all(tree: &Tree) -> Vec<ProbeResult> {
    let services = vec![oom::Service { name: "web".to_owned(), container: "aa".to_owned(), killed: false }];
    let addresses = [("eth0".to_owned(), "192.0.2.1".to_owned())];
    let status = Status { pid: 7, ..tests::status() };
    let data = std::path::Path::new("/data/copal");
    [
        clock::judge(&clock::read(tree, build_time(), build_time())),
        disk_health::judge(&disk_health::read(
            tree,
            &[tree.path(""), data.into()],
            &disk_health::Counted::default(),
        )),
        partition::judge(&partition::read(tree, data)),
        memory::judge(&memory::read(tree)),
        oom::judge(&oom::read(tree, services)),
        temperature::judge(&temperature::read(tree)),
        undervoltage::judge(&undervoltage::read(tree)),
        network::judge(&network::read(tree, &addresses)),
        agent::judge(&agent::read(tree, &tree.path(""), Some(&status), false, 1)),
    ]
    .concat()
}

#[test]
fn a_device_on_which_all_is_well_is_well() {
    let (_dir, tree) = tests::plant(FILES);
    for result in all(&tree) {
        assert_eq!(result.verdict, Verdict::Ok, "{result:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn no_reader_fails_on_whatever_a_file_holds(
        at in prop::collection::vec((0..FILES.len(), prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[0-9a-fx:;., \n-]{0,200}".prop_map(String::into_bytes),
            // A sound file with a part cut out or doubled.
            (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(file, cut)| {
                let text = FILES[file.index(FILES.len())].1.as_bytes();
                let cut = cut.index(text.len() + 1);
                [&text[cut..], text, &text[..cut]].concat()
            }),
        ]), 1..8)
    ) {
        let (dir, tree) = tests::plant(FILES);
        for (file, content) in at {
            fs::write(dir.path().join(FILES[file].0), content).unwrap();
        }
        for result in all(&tree) {
            prop_assert!(result.is_sound(), "{result:?}");
        }
    }
}

pub(super) fn bare(dir: &std::path::Path) -> Deps {
    let places = tests::places(dir);
    let engine = Engine::connect(places.docker_host.as_deref());
    let link = Link::None { cloud: None, why: "there is no copal.json".to_owned(), deaf: false };
    let mut deps = Deps::new(places, Clock::default(), engine, link, false);
    deps.tree = Tree::new(dir.join("root"));
    deps.environment = |_| None;
    deps
}

#[tokio::test]
async fn a_machine_that_lacks_everything_gets_an_answer_to_every_check() {
    let dir = tempfile::tempdir().unwrap();
    let diagnosis = diagnose(&bare(dir.path()), &[]).await.unwrap();
    assert!(diagnosis.is_sound());
    for (name, _) in PROBES {
        let results: Vec<_> = diagnosis.probes.iter().filter(|p| p.name == *name).collect();
        assert!(!results.is_empty(), "{name} says nothing");
        let silent = results.iter().find(|p| p.verdict == Verdict::Failed && p.advice.is_empty());
        assert!(silent.is_none(), "{silent:?} fails and says not what to do");
    }
    let of = |name: &str| diagnosis.probes.iter().find(|p| p.name == name).unwrap();
    assert_eq!(of("engine").verdict, Verdict::Failed);
    assert_eq!(of("agent").verdict, Verdict::Failed);
    assert_eq!(of("cloud").verdict, Verdict::Unknown);
    assert_eq!(of("services").verdict, Verdict::Unknown);
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "checks leave nothing behind");
}

#[tokio::test]
async fn a_file_that_hangs_holds_up_its_own_check_alone() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("root/proc/meminfo");
    fs::create_dir_all(fifo.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let deps = bare(dir.path());
    let asked = ["memory", "temperature", "oom"].map(str::to_owned);
    let results = run(&deps, &asked).await.unwrap();
    // Lets the look end: it waits for somebody to write.
    drop(fs::OpenOptions::new().write(true).open(&fifo).unwrap());
    let told: Vec<_> = results.iter().map(|r| (r.name.as_str(), r.detail.contains("hangs"))).collect();
    assert_eq!(told, [("memory", true), ("oom", false), ("temperature", false)], "{results:?}");
}

#[tokio::test]
async fn a_program_asks_the_agent_that_runs_for_what_needs_its_login() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("run")).unwrap();
    let inside = Arc::new(Deps { inside: true, ..bare(dir.path()) });
    let beside = Deps { link: Link::Agent { bases: Vec::new() }, ..bare(dir.path()) };
    let asked = ["proxy", "cloud", "temperature"].map(str::to_owned);
    let alone = run(&beside, &asked).await.unwrap();
    assert!(alone[1].detail.contains("does not answer"), "{alone:?}");
    assert!(!door::is_open(&dir.path().join("run")));

    let person = async {
        while !door::is_open(&dir.path().join("run")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let results = run(&beside, &asked).await.unwrap();
        let names: Vec<_> = results.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["temperature", "proxy", "cloud"], "in their order");
        assert_eq!(results[1].detail, "no proxy is set");
        assert!(results[2].detail.contains("there is no copal.json"), "the agent's own answer: {results:?}");
        let refused = door::ask(&dir.path().join("run"), &["cpu".to_owned()]).await.unwrap_err();
        assert!(refused.contains("probe_unknown"), "{refused}");
    };
    tokio::select! {
        () = door::serve(inside) => unreachable!("it serves for ever"),
        () = person => {}
    }
}

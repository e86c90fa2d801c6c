//! Random lives of a device.

use proptest::prelude::*;

use super::*;

/// What may happen to a device.
#[derive(Debug, Clone)]
enum Event {
    Target(u8, u64),
    NoTarget,
    Unknown,
    Cloud(bool),
    CloudNotInTrial(bool),
    Locked(bool),
    Sick(u8, bool),
    Panics(u8, bool),
    Install(bool, bool),
    ClockBy(i64),
    JournalLost,
    /// The device runs so long, and then loses power.
    PowerCut(u64),
    /// The power goes at the n-th effect from here.
    CutAt(usize),
    /// It runs so long.
    Runs(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3_u8, 0..2_u64).prop_map(|(r, retry)| Event::Target(r, retry)),
        1 => Just(Event::NoTarget),
        1 => Just(Event::Unknown),
        1 => any::<bool>().prop_map(Event::Cloud),
        1 => any::<bool>().prop_map(Event::CloudNotInTrial),
        1 => any::<bool>().prop_map(Event::Locked),
        2 => (0..3_u8, any::<bool>()).prop_map(|(r, b)| Event::Sick(r, b)),
        1 => (0..3_u8, any::<bool>()).prop_map(|(r, b)| Event::Panics(r, b)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(good, passing)| Event::Install(good, passing)),
        1 => (-100_000..100_000_i64).prop_map(Event::ClockBy),
        1 => Just(Event::JournalLost),
        4 => (0..400_u64).prop_map(Event::PowerCut),
        4 => (0..60_usize).prop_map(Event::CutAt),
        4 => (0..4000_u64).prop_map(Event::Runs),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_whole_release_runs_trials_are_bounded_and_in_the_end_the_target_or_a_reason(
        events in proptest::collection::vec(event(), 1..25),
    ) {
        in_time(async {
            let world = World::new();
            let releases = [world.release(20, 0), world.release(21, 20), world.release(22, 0)];
            let mut target = None;
            let mut seq = 0;
            for event in events {
                seq += 1;
                let mut runs = Duration::from_secs(0);
                match event {
                    Event::Target(r, retry) => {
                        let release = &releases[usize::from(r)];
                        let aim = if release.counter < *world.floor.lock().unwrap() {
                            HostAim::Refused(verify::Code::ReleaseRollback)
                        } else {
                            wants(release, retry)
                        };
                        target = Some(world.target(aim, seq));
                    }
                    Event::NoTarget => target = Some(world.target(HostAim::None, seq)),
                    Event::Unknown => target = None,
                    Event::Cloud(on) => world.life.lock().unwrap().cloud = on,
                    Event::CloudNotInTrial(on) => world.life.lock().unwrap().cloud_not_in_trial = on,
                    Event::Locked(on) => world.life.lock().unwrap().locked = on,
                    Event::Sick(r, on) => set(&world.sick, releases[usize::from(r)].sha256(), on),
                    Event::Panics(r, on) => {
                        // A committed release does not begin to panic: two such slots would be no updater's fault.
                        let hash = releases[usize::from(r)].sha256();
                        let held = world.held.lock().unwrap().contains(&Held::Whole(hash));
                        set(&world.panics, hash, on && !held);
                    }
                    Event::Install(good, passing) => {
                        world.life.lock().unwrap().install = if good { Ok(()) } else { Err(("os_write", passing)) };
                    }
                    Event::ClockBy(by) => world.life.lock().unwrap().clock += by,
                    Event::JournalLost => {
                        for bytes in world.files.lock().unwrap().values_mut() {
                            bytes.fill(0);
                        }
                    }
                    Event::PowerCut(after) => runs = Duration::from_secs(after),
                    Event::CutAt(n) => {
                        *world.left.lock().unwrap() = Some(n);
                        runs = Duration::from_secs(1000);
                    }
                    Event::Runs(long) => runs = Duration::from_secs(long),
                }
                if !runs.is_zero() {
                    let until = Instant::now() + runs;
                    while Instant::now() < until {
                        let left = until - Instant::now();
                        let seen = world.agent(target.clone(), left).await;
                        if *world.dead.lock().unwrap() {
                            *world.left.lock().unwrap() = None;
                        }
                        if seen.end == End::Off {
                            world.starts();
                        }
                    }
                    *world.left.lock().unwrap() = None;
                    if matches!(event, Event::PowerCut(_)) {
                        world.starts();
                    }
                }
            }
            // Calm: the last target, a good network, nobody holds a lock.
            {
                let mut life = world.life.lock().unwrap();
                (life.cloud, life.cloud_not_in_trial, life.locked, life.install) = (true, false, false, Ok(()));
            }
            let good = world.release(30, 0);
            for hash in [&world.sick, &world.panics] {
                hash.lock().unwrap().clear();
            }
            let target = world.target(wants(&good, 0), 1000);
            // A pause of a day may stand between.
            for _ in 0..3 {
                world.settles(Some(target.clone())).await;
                tokio::time::advance(Duration::from_secs(86_400)).await;
            }
            let status = world.settles(Some(target)).await;
            prop_assert_eq!(code(&status), None, "{:?}", status);
            prop_assert_eq!(world.running(), Held::Whole(good.sha256()));
            world.limits_hold();
            Ok(())
        })?;
    }
}

fn set(of: &Mutex<std::collections::BTreeSet<Sha256Hex>>, hash: Sha256Hex, on: bool) {
    let mut of = of.lock().unwrap();
    if on {
        of.insert(hash);
    } else {
        of.remove(&hash);
    }
}

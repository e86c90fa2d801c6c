//! Updates that go well, and releases that do not.

use super::*;

#[test]
fn a_release_is_installed_tried_and_committed_and_the_slot_below_its_floor_retired() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 20);
        let target = world.target(wants(&new, 0), 5);
        let status = world.settles(Some(target)).await;
        let host = status.host.clone().unwrap();
        assert_eq!(code(&status), None);
        assert_eq!(status.applied, Some((1, 5)));
        assert_eq!(host.release, Some(new.sha256()));
        assert_eq!(host.slots["b"].state, SlotState::Committed);
        assert_eq!(host.slots["a"].state, SlotState::Empty, "the factory's image is below the floor");
        assert!(!world.boot.inner().valid[0]);
        assert_eq!(world.running(), Held::Whole(new.sha256()));
        assert_eq!(*world.boots.lock().unwrap(), 2, "one restart");
        insta::assert_snapshot!(world.boot.inner().calls.join("\n"), @r"
        mark_well
        mark_unbootable b
        arm_trial b
        reboot into the trial
        commit b
        mark_well
        mark_unbootable a
        ");
    });
}

#[test]
fn power_cut_at_any_step_of_a_good_update_ends_in_the_new_release() {
    let steps = in_time(async {
        let world = World::new();
        let new = world.release(20, 20);
        world.settles(Some(world.target(wants(&new, 0), 5))).await;
        *world.steps.lock().unwrap()
    });
    assert!(steps > 30, "{steps}");
    for cut in 0..steps {
        in_time(async {
            let world = World::new();
            let new = world.release(20, 20);
            *world.left.lock().unwrap() = Some(cut);
            let target = world.target(wants(&new, 0), 5);
            let seen = world.agent(Some(target.clone()), HOURS).await;
            if seen.end == End::Off {
                if *world.dead.lock().unwrap() {
                    *world.left.lock().unwrap() = None;
                }
                world.starts();
            }
            for _ in 0..10 {
                let seen = world.agent(Some(target.clone()), HOURS).await;
                if *world.dead.lock().unwrap() {
                    *world.left.lock().unwrap() = None;
                }
                if seen.end == End::Steady {
                    break;
                }
                world.starts();
            }
            let status = world.settles(Some(target)).await;
            assert_eq!(code(&status), None, "cut at {cut}: {status:?}");
            assert_eq!(world.running(), Held::Whole(new.sha256()), "cut at {cut}");
            assert_eq!(*world.floor.lock().unwrap(), 20, "cut at {cut}");
            world.limits_hold();
        });
    }
}

#[test]
fn power_cut_at_any_step_of_a_bad_update_ends_in_the_old_release_with_the_reason() {
    for panics in [false, true] {
        let mut cut = 0;
        loop {
            let more = in_time(async {
                let world = World::new();
                let bad = world.release(20, 0);
                let broken = if panics { &world.panics } else { &world.sick };
                broken.lock().unwrap().insert(bad.sha256());
                *world.left.lock().unwrap() = Some(cut);
                let target = world.target(wants(&bad, 0), 5);
                for _ in 0..20 {
                    let seen = world.agent(Some(target.clone()), HOURS).await;
                    if *world.dead.lock().unwrap() {
                        *world.left.lock().unwrap() = None;
                    }
                    if seen.end == End::Steady {
                        break;
                    }
                    world.starts();
                }
                let more = world.left.lock().unwrap().is_none();
                *world.left.lock().unwrap() = None;
                let status = world.settles(Some(target)).await;
                let host = status.host.clone().unwrap();
                let expected = if panics { "os_no_verdict" } else { "os_unhealthy" };
                assert_eq!(code(&status).as_deref(), Some(expected), "cut at {cut}: {status:?}");
                assert_eq!(host.failed, Some(bad.sha256()));
                assert_eq!(status.applied, None);
                assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())), "cut at {cut}");
                assert_eq!(host.slots["b"].state, SlotState::Bad);
                world.limits_hold();
                // It stays so, and a person's retry is another try.
                let armed = world.armed.lock().unwrap().len();
                world.sick.lock().unwrap().clear();
                world.panics.lock().unwrap().clear();
                let again = world.settles(Some(world.target(wants(&bad, 1), 6))).await;
                assert_eq!(code(&again), None, "cut at {cut}: {again:?}");
                assert_eq!(world.armed.lock().unwrap().len(), armed + 1);
                more
            });
            cut += 1;
            if !more {
                break;
            }
        }
        assert!(cut > 20, "{cut}");
    }
}

#[test]
fn a_cloud_away_in_the_trial_is_no_fault_of_the_release() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().cloud_not_in_trial = true;
        let target = world.target(wants(&new, 0), 5);
        let mut trials = 0;
        // Two days, with a cloud that is away in each trial and for a while after it: trials at growing distances, never parked.
        while world.began.elapsed() < Duration::from_secs(48 * 3600) {
            world.life.lock().unwrap().cloud = trials == 0;
            let seen = world.agent(Some(target.clone()), Duration::from_secs(2000)).await;
            world.life.lock().unwrap().cloud = true;
            let ended = seen.end == End::Off
                || world.agent(Some(target.clone()), Duration::from_secs(26 * 3600)).await.end == End::Off;
            assert!(ended, "{:?}", seen.status);
            world.starts();
            trials += u32::from(world.on_trial());
        }
        assert!((3..=6).contains(&trials), "{trials}");
        while world.on_trial() {
            world.agent(Some(target.clone()), Duration::from_secs(3600)).await;
            world.starts();
        }
        let seen = world.agent(Some(target.clone()), Duration::from_secs(60)).await;
        assert_eq!(code(&seen.status).as_deref(), Some("os_cloud_unreachable"));
        assert_eq!(seen.status.host.unwrap().failed, None, "never parked");
        // The cloud is back in the trial, too.
        world.life.lock().unwrap().cloud_not_in_trial = false;
        for _ in 0..4 {
            if world.agent(Some(target.clone()), Duration::from_secs(30 * 3600)).await.end == End::Off {
                world.starts();
            }
        }
        assert_eq!(world.running(), Held::Whole(new.sha256()));
    });
}

#[test]
fn a_release_that_keeps_the_cloud_away_is_given_up_after_one_round_of_trials() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        // Only the old slot reaches it, and at once.
        world.life.lock().unwrap().cloud_not_in_trial = true;
        let target = world.target(wants(&new, 0), 5);
        let mut trials = 0;
        let status = loop {
            let seen = world.agent(Some(target.clone()), Duration::from_secs(26 * 3600)).await;
            if seen.end == End::Steady {
                break seen.status;
            }
            world.starts();
            trials += u32::from(world.on_trial());
            assert!(trials < 10, "tried for ever");
        };
        assert_eq!(trials, 3);
        assert_eq!(code(&status).as_deref(), Some("os_cloud_unreachable"));
        assert_eq!(status.host.unwrap().failed, Some(new.sha256()));
        assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())));
        // A person asks again.
        world.life.lock().unwrap().cloud_not_in_trial = false;
        world.settles(Some(world.target(wants(&new, 1), 6))).await;
        assert_eq!(world.running(), Held::Whole(new.sha256()));
    });
}

#[test]
fn power_lost_in_trials_is_told_apart_and_the_trials_are_counted() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        let target = world.target(wants(&new, 0), 5);
        let mut boots = 0;
        // Whoever pulls the plug does it whenever the trial has been up for five seconds.
        let status = loop {
            let most = if world.on_trial() { Duration::from_secs(5) } else { HOURS };
            let seen = world.agent(Some(target.clone()), most).await;
            if seen.end == End::Steady && !world.on_trial() {
                break seen.status;
            }
            world.starts();
            boots += 1;
            assert!(boots < 30, "the device restarts for ever");
        };
        assert_eq!(code(&status).as_deref(), Some("os_power_lost"));
        assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())));
        assert_eq!(world.armed.lock().unwrap()[&new.sha256()], 3);
    });
}

#[test]
fn locks_and_the_window_hold_the_restart_back_and_a_changed_mind_cancels() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().locked = true;
        let target = world.target(wants(&new, 0), 5);
        let hour = Duration::from_secs(3600);
        let seen = world.agent(Some(target.clone()), hour).await;
        assert_eq!(code(&seen.status).as_deref(), Some("os_waiting_lock"));
        assert_eq!(seen.status.host.unwrap().progress.unwrap().stage, "os_waiting");
        world.life.lock().unwrap().locked = false;
        // NOW is 08:00 UTC.
        world.life.lock().unwrap().window = Some("22:30-04:00");
        let target = world.target(wants(&new, 0), 5);
        let seen = world.agent(Some(target), hour).await;
        assert_eq!(code(&seen.status).as_deref(), Some("os_waiting_window"));
        assert!(!world.boot.inner().valid[1], "not bootable while it waits");
        let seen = world.agent(Some(world.target(HostAim::None, 6)), hour).await;
        assert_eq!((code(&seen.status), seen.status.applied), (None, Some((1, 6))));
        assert_eq!(seen.status.host.unwrap().slots["b"].state, SlotState::Empty);
        let journal = Journal::load(&StateDir::open("/s", world.clone()).unwrap()).unwrap();
        assert_eq!(journal.last.unwrap().reason.unwrap().code, "os_cancelled");
        assert_eq!(*world.boots.lock().unwrap(), 1);
    });
}

#[test]
fn a_release_that_cannot_be_written_is_given_up_after_three_times_and_a_dead_network_never() {
    in_time(async {
        for (code_, passing, parked) in [("os_readback", false, true), ("os_download", true, false)] {
            let world = World::new();
            let new = world.release(20, 0);
            world.life.lock().unwrap().install = Err((code_, passing));
            let target = world.target(wants(&new, 0), 5);
            let status = world.settles(Some(target.clone())).await;
            assert_eq!(code(&status).as_deref(), Some(code_));
            assert_eq!(status.host.unwrap().failed.is_some(), parked);
            world.life.lock().unwrap().install = Ok(());
            let status = world.settles(Some(target)).await;
            assert_eq!(code(&status).is_some(), parked);
        }
    });
}

#[test]
fn the_factorys_image_is_recognised_as_the_release_it_is() {
    in_time(async {
        let world = World::new();
        let mut release = OwnerKeys::fixed().host_release(20, b"image");
        release.version = "0.9.0".parse().unwrap();
        let keys = OwnerKeys::fixed();
        let envelope = sign(&release, &[&keys.host]);
        let expected = ExpectedRelease::host(envelope.payload_sha256());
        let root = keys.trusted(&keys.root());
        let platform = copal_protocol::testing::platform();
        let purpose = Purpose::Install { now: NOW };
        let found = Arc::new(
            verify::release(&root, &expected, &ReleaseMarks::default(), &platform, purpose, &envelope)
                .unwrap(),
        );
        world.releases.lock().unwrap().insert(found.sha256(), found.clone());
        world.held.lock().unwrap()[0] = Held::Whole(found.sha256());
        let status = world.settles(Some(world.target(wants(&found, 0), 5))).await;
        assert_eq!((code(&status), status.applied), (None, Some((1, 5))));
        assert_eq!(status.host.unwrap().release, Some(found.sha256()));
        assert_eq!(*world.boots.lock().unwrap(), 1, "nothing was installed");
    });
}

#[test]
fn a_person_goes_back_and_the_target_is_not_put_there_again() {
    in_time(async {
        let world = World::new();
        let (old, new) = (world.release(19, 0), world.release(20, 0));
        world.settles(Some(world.target(wants(&old, 0), 4))).await;
        let target = world.target(wants(&new, 0), 5);
        world.settles(Some(target.clone())).await;
        assert_eq!(world.running(), Held::Whole(new.sha256()));
        let hour = Duration::from_secs(3600);
        let seen = world.agent_with(Some(target.clone()), hour, Some(Ask::Rollback)).await;
        assert_eq!(seen.end, End::Off);
        world.starts();
        let status = world.settles(Some(target)).await;
        assert_eq!(world.running(), Held::Whole(old.sha256()));
        assert_eq!(code(&status).as_deref(), Some("os_rolled_back"));
        // Another target is installed as ever.
        let newer = world.release(21, 0);
        world.settles(Some(world.target(wants(&newer, 0), 6))).await;
        assert_eq!(world.running(), Held::Whole(newer.sha256()));
    });
}

#[test]
fn what_a_newer_engine_wrote_is_not_given_to_a_release_that_does_not_read_it() {
    in_time(async {
        // The image that runs writes the engine's storage in format 2. A release that says nothing is not judged.
        for (counter, schema, refused) in [(21, Some(1), true), (22, Some(2), false), (23, None, false)] {
            let world = World::new();
            world.says(Sha256Hex::of(FACTORY.as_bytes()), |c| c.data_schema = 2);
            let release = world.release_with(counter, |r| r.data_schema = schema);
            let status = world.settles(Some(world.target(wants(&release, 0), counter))).await;
            assert_eq!(
                code(&status).as_deref(),
                refused.then_some("os_incompatible"),
                "{counter}: {status:?}"
            );
            assert_eq!(world.running() == Held::Whole(release.sha256()), !refused);
            let calls = world.boot.inner().calls.join(", ");
            assert_eq!(calls == "mark_well", refused, "nothing is written before the refusal: {calls}");
        }
    });
}

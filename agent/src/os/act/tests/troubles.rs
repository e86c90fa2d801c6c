//! What is lost, full, broken or alone.

use super::*;

#[test]
fn what_failed_its_trial_is_never_committed_though_three_power_cuts_give_it_another_turn() {
    in_time(async {
        let world = World::new();
        let bad = world.release(20, 0);
        world.sick.lock().unwrap().insert(bad.sha256());
        let target = world.target(wants(&bad, 0), 5);
        world.settles(Some(target.clone())).await;
        assert!(!world.boot.inner().valid[1], "what failed is made unbootable once the old slot is well");
        assert_eq!(*world.over.lock().unwrap(), [bad.sha256()], "a later try of it is judged as new");

        // And where that could not be done: its head is there, and nothing the agent sees tells that it is sick.
        world.boot.inner().valid[1] = true;
        world.sick.lock().unwrap().clear();
        for _ in 0..4 {
            world.starts();
        }
        assert!(world.on_trial() && world.running() == Held::Whole(bad.sha256()));
        let status = world.settles(Some(target)).await;
        assert_eq!(world.running(), Held::Whole(Sha256Hex::of(FACTORY.as_bytes())));
        assert_eq!(code(&status).as_deref(), Some("os_unhealthy"));
    });
}

#[test]
fn a_full_data_partition_costs_the_committed_slot_none_of_its_boots() {
    in_time(async {
        // Full from the first boot of the new system on that was committed; and from the old one's on that had to go back.
        for sick in [false, true] {
            let world = World::new();
            let new = world.release(20, 0);
            if sick {
                world.sick.lock().unwrap().insert(new.sha256());
            }
            let target = world.target(wants(&new, 0), 5);
            world.life.lock().unwrap().full_after_the_trial = true;
            for _ in 0..10 {
                world.agent(Some(target.clone()), HOURS).await;
                let trial = world.on_trial();
                let full = world.life.lock().unwrap().data[0].is_some();
                assert!(
                    trial || world.boot.inner().booted.tries == 0,
                    "sick {sick}, full {full}: not called well"
                );
                world.starts();
            }
            assert!(world.life.lock().unwrap().data[0].is_some(), "the trial was judged");
            assert!(!world.on_trial());
            let expected = if sick { Sha256Hex::of(FACTORY.as_bytes()) } else { new.sha256() };
            assert_eq!(world.running(), Held::Whole(expected));
        }
    });
}

#[test]
fn a_journal_that_cannot_be_read_keeps_no_trial_and_costs_no_boot() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        let target = world.target(wants(&new, 0), 5);
        while world.agent(Some(target.clone()), HOURS).await.end == End::Off {
            world.starts();
            if world.on_trial() {
                break;
            }
        }
        world.life.lock().unwrap().data[1] = Some(io::ErrorKind::PermissionDenied);
        let seen = world.agent(Some(target.clone()), HOURS).await;
        assert_eq!(seen.end, End::Off, "the trial is undone: {:?}", seen.status);
        world.starts();
        assert!(!world.on_trial());
        world.agent(Some(target.clone()), HOURS).await;
        assert_eq!(world.boot.inner().booted.tries, 0, "called well");
        // It can be read again.
        world.life.lock().unwrap().data[1] = None;
        let status = world.settles(Some(target)).await;
        assert_eq!((code(&status), world.running()), (None, Held::Whole(new.sha256())));
    });
}

#[test]
fn a_slot_alone_is_kept_where_the_boot_state_was_lost_and_the_cloud_is_away() {
    in_time(async {
        let world = World::new();
        {
            let mut inner = world.boot.inner();
            (inner.booted.committed, inner.booted.trial, inner.on_trial) = (Slot::B, true, true);
            (inner.booted.fell_back, inner.booted.fell_why) = (true, Some("lost".to_owned()));
        }
        world.life.lock().unwrap().cloud = false;
        let seen = world.agent(None, HOURS).await;
        assert_eq!(seen.end, End::Steady, "no restart");
        assert_eq!(world.boot.inner().booted.committed, Slot::A);
    });
}

#[test]
fn a_pause_ends_though_the_clock_stands() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        (world.life.lock().unwrap().install, world.life.lock().unwrap().clock_stands) =
            (Err(("os_download", true)), true);
        let target = world.target(wants(&new, 0), 5);
        world.agent(Some(target.clone()), Duration::from_secs(400)).await;
        world.life.lock().unwrap().install = Ok(());
        let status = world.settles(Some(target)).await;
        assert_eq!((code(&status), world.running()), (None, Held::Whole(new.sha256())));
    });
}

#[test]
fn a_restart_that_does_not_come_gives_the_services_their_locks_back() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().reboot_fails = true;
        let target = world.target(wants(&new, 0), 5);
        let (mut held, mut free) = (0, 0);
        let watch = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if world.boot.inner().booted.armed {
                    *(if *world.guards.lock().unwrap() > 0 { &mut held } else { &mut free }) += 1;
                }
            }
        };
        tokio::select! {
            () = watch => unreachable!(),
            _ = world.agent(Some(target), Duration::from_secs(900)) => {}
        }
        assert!(free > held && held > 0, "free {free} s, held {held} s");
    });
}

#[test]
fn an_installer_that_breaks_off_is_a_failure_like_others() {
    in_time(async {
        let world = World::new();
        let new = world.release(20, 0);
        world.life.lock().unwrap().installer_panics = true;
        let target = world.target(wants(&new, 0), 5);
        let status = world.settles(Some(target)).await;
        assert_eq!(code(&status).as_deref(), Some("os_write"));
        assert_eq!(status.host.unwrap().failed, Some(new.sha256()));
    });
}

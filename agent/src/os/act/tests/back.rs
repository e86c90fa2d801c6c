//! A person at the device goes back: to a release, and to the image the device came with.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn factory() -> Sha256Hex {
    Sha256Hex::of(FACTORY.as_bytes())
}

/// A device that runs a release in slot b, and has the factory's image in slot a.
async fn updated(floor: u64, schema: [u64; 2]) -> (Arc<World>, Arc<Target>) {
    let world = World::new();
    world.says(factory(), |c| (c.floor, c.data_schema) = (10, schema[0]));
    let new = world.release(20, floor);
    world.says(new.sha256(), |c| (c.floor, c.data_schema) = (10, schema[1]));
    let target = world.target(wants(&new, 0), 5);
    world.settles(Some(target.clone())).await;
    assert_eq!(world.running(), Held::Whole(new.sha256()));
    (world, target)
}

async fn asks(world: &Arc<World>, target: &Arc<Target>) -> Result<String, Reason> {
    world.agent_with(Some(target.clone()), HOUR, Some(Ask::Rollback)).await.answer.unwrap()
}

#[test]
fn a_person_goes_back_to_the_factorys_image_and_forward_again() {
    in_time(async {
        let (world, target) = updated(10, [1, 1]).await;
        let Held::Whole(new) = world.running() else { panic!() };
        assert!(world.boot.inner().valid[0], "an image that says it is not below the floor stays");
        assert_eq!(asks(&world, &target).await.unwrap(), "0.9.0 in slot a is tried");
        world.starts();
        assert!(world.on_trial(), "as a trial, which is counted");
        assert_eq!(world.armed.lock().unwrap().len(), 2);
        let status = world.settles(Some(target.clone())).await;
        assert_eq!(world.running(), Held::Whole(factory()));
        assert_eq!(code(&status).as_deref(), Some("os_rolled_back"), "the target is not put there again");
        let host = status.host.unwrap();
        assert_eq!((host.release, host.slots["a"].release, host.failed), (None, None, Some(new)));
        assert_eq!(host.slots["a"].version, "0.9.0");
        assert_eq!(host.slots["b"].state, SlotState::Ready);
        assert_eq!(*world.floor.lock().unwrap(), 10, "what was committed is remembered");

        assert!(asks(&world, &target).await.is_ok());
        world.starts();
        world.settles(Some(target)).await;
        assert_eq!(world.running(), Held::Whole(new));
    });
}

#[test]
fn a_factorys_image_that_does_not_become_well_is_left_again_and_not_booted_any_more() {
    in_time(async {
        let (world, target) = updated(10, [1, 1]).await;
        let new = world.running();
        world.sick.lock().unwrap().insert(factory());
        asks(&world, &target).await.unwrap();
        world.starts();
        let status = world.settles(Some(target.clone())).await;
        assert_eq!(world.running(), new);
        let host = status.host.unwrap();
        assert_eq!((host.slots["a"].state, host.failed), (SlotState::Bad, None));
        assert!(!world.boot.inner().valid[0]);
        assert!(asks(&world, &target).await.unwrap_err().message.contains("tried and undone"));
    });
}

#[test]
fn power_cut_at_any_step_of_going_back_to_the_factory_ends_in_one_of_both() {
    let mut cut = 0;
    loop {
        let more = in_time(async {
            let (world, target) = updated(10, [1, 1]).await;
            let new = world.running();
            *world.left.lock().unwrap() = Some(cut);
            let seen = world.agent_with(Some(target.clone()), HOUR, Some(Ask::Rollback)).await;
            for _ in 0..10 {
                if *world.dead.lock().unwrap() {
                    *world.left.lock().unwrap() = None;
                }
                world.starts();
                if world.agent(Some(target.clone()), HOURS).await.end == End::Steady {
                    break;
                }
            }
            let more = world.left.lock().unwrap().is_none();
            *world.left.lock().unwrap() = None;
            world.settles(Some(target)).await;
            let running = world.running();
            let began = seen.answer.is_some_and(|said| said.is_ok());
            let ended = if began { Held::Whole(factory()) } else { new };
            assert!(running == ended || running == Held::Whole(factory()), "cut at {cut}: {running:?}");
            world.limits_hold();
            more
        });
        cut += 1;
        if !more {
            break;
        }
    }
    assert!(cut > 15, "{cut}");
}

#[test]
fn a_factorys_image_below_the_floor_is_refused_and_made_unbootable() {
    in_time(async {
        let (world, target) = updated(11, [1, 1]).await;
        assert!(!world.boot.inner().valid[0]);
        let why = asks(&world, &target).await.unwrap_err();
        assert!(why.message.contains("slot a is empty"), "{}", why.message);

        // The floor rises later, by another root: at once, and while a person waits for the window.
        let (world, target) = updated(10, [1, 1]).await;
        let new = world.running();
        world.life.lock().unwrap().window = Some("22:30-04:00");
        let waits = world.target(target.os.clone(), 6);
        asks(&world, &waits).await.unwrap();
        *world.floor.lock().unwrap() = 11;
        let status = world.settles(Some(waits)).await;
        assert_eq!(world.running(), new);
        assert_eq!(status.host.unwrap().slots["a"].state, SlotState::Empty);
    });
}

#[test]
fn a_slot_that_nobody_knows_or_that_has_lost_its_first_bytes_is_refused() {
    in_time(async {
        let (world, target) = updated(10, [1, 1]).await;
        world.boot.inner().valid[0] = false;
        assert_eq!(asks(&world, &target).await.unwrap_err().code, "os_slot_invalid");
        // The journal is lost: what the slot that runs is can be known again, what the other one holds cannot.
        let (world, target) = updated(0, [1, 1]).await;
        world.says(target_release(&target), |c| c.floor = 0);
        world.files.lock().unwrap().clear();
        let why = asks(&world, &world.target(HostAim::None, 6)).await.unwrap_err();
        assert!(why.message.contains("not known here"), "{}", why.message);
        assert_eq!(*world.boots.lock().unwrap(), 2, "nothing was restarted");
    });
}

fn target_release(target: &Target) -> Sha256Hex {
    let HostAim::Release(found) = &target.os else { panic!() };
    found.release.sha256()
}

#[test]
fn what_a_newer_engine_wrote_is_not_given_to_an_image_that_does_not_read_it() {
    in_time(async {
        // The new image's engine writes its storage in format 2; the factory's reads format 1.
        let (world, target) = updated(10, [1, 2]).await;
        let why = asks(&world, &target).await.unwrap_err();
        assert_eq!(why.code, "os_incompatible");
        assert!(
            why.message.contains("engine's storage") && why.message.contains("format 1"),
            "{}",
            why.message
        );
    });
}

//! The promises of os-updates.md, on every backend.

use std::path::Path;

use copal_protocol::ids::Sha256Hex;
use proptest::prelude::*;

use super::{Storage, Tear, World};
use crate::os::{Slot, config::BackendKind};

const KINDS: [BackendKind; 3] = [BackendKind::Uboot, BackendKind::Grub, BackendKind::Tryboot];

/// A device that runs version 1 from slot a and said that it is well.
fn running(kind: BackendKind) -> World {
    let mut world = World::new(kind);
    assert_eq!(world.boot(|_| false), Slot::A);
    world.backend.mark_well().unwrap();
    world
}

fn state_device(world: &World) -> &'static [&'static str] {
    if world.kind == BackendKind::Grub { &["/sim/env0", "/sim/env1"] } else { &["/sim/disk"] }
}

/// Everything an update does, on a device that runs; ends in a committed slot b.
fn whole_update(world: &mut World) -> Result<(), super::super::BootError> {
    world.update(2)?;
    world.restart(true)?;
    assert_eq!(world.boot(|_| false), Slot::B);
    assert!(world.backend.active()?.trial);
    world.backend.commit(Slot::B)?;
    world.backend.mark_well()
}

#[test]
fn an_update_is_tried_committed_and_stays() {
    for kind in KINDS {
        let mut world = running(kind);
        whole_update(&mut world).unwrap();
        for _ in 0..9 {
            world.restart(false).unwrap();
            assert_eq!(world.boot(|_| false), Slot::B);
            world.backend.mark_well().unwrap();
            let booted = world.backend.active().unwrap();
            assert_eq!(
                (booted.trial, booted.committed, booted.fell_back),
                (false, Slot::B, false),
                "{kind:?}"
            );
        }
        // And back into slot a.
        world.update(3).unwrap();
        world.restart(true).unwrap();
        assert_eq!(world.boot(|_| false), Slot::A);
        world.backend.commit(Slot::A).unwrap();
        assert_eq!(world.version(Slot::A), Some(3));
    }
}

#[test]
fn a_power_cut_at_any_write_of_an_update_leaves_a_verified_slot_and_an_update_that_can_be_done_again() {
    for kind in KINDS {
        let start = running(kind).storage.writes();
        let mut world = running(kind);
        whole_update(&mut world).unwrap();
        let writes = world.storage.writes() - start;
        assert!(writes >= 14, "{writes}");
        for tear in Tear::ALL {
            for at in 0..writes {
                let mut world = running(kind);
                world.storage.cut_at(at, tear);
                // `boot` in the update asserts that only complete slots are started. A cut in the bootloader is one there.
                let first = whole_update(&mut world);
                let slot = world.boot(|_| false);
                let booted = world.backend.active().unwrap();
                assert!(world.version(slot).is_some());
                if !booted.trial {
                    assert_eq!(slot, booted.committed);
                }
                let safe = world.version(Slot::A) == Some(1);
                assert!(safe, "{kind:?} {tear:?} {at}: slot a was touched");
                // Whatever is on trial now came out well.
                if booted.trial {
                    world.backend.commit(slot).unwrap();
                }
                world.backend.mark_well().unwrap();
                if slot == Slot::A {
                    assert!(first.is_err() || kind == BackendKind::Tryboot, "{kind:?} {tear:?} {at}");
                    world.update(2).unwrap_or_else(|e| panic!("{kind:?} {tear:?} {at}: {e}"));
                    world.restart(true).unwrap();
                    assert_eq!(world.boot(|_| false), Slot::B, "{kind:?} {tear:?} {at}");
                    world.backend.commit(Slot::B).unwrap();
                }
                world.restart(false).unwrap();
                assert_eq!(world.boot(|_| false), Slot::B, "{kind:?} {tear:?} {at}");
            }
        }
    }
}

#[test]
fn the_running_slot_is_never_written() {
    for kind in KINDS {
        let mut world = running(kind);
        world.storage.take_written();
        world.update(2).unwrap();
        world.restart(true).unwrap();
        let written = world.storage.take_written();
        assert!(written.iter().all(|path| !path.to_str().unwrap().ends_with("-a")), "{written:?}");
        let before = world.storage.writes();
        assert_eq!(world.backend.mark_unbootable(Slot::A).unwrap_err().code(), "os_slot_active");
        assert_eq!(
            world.backend.arm_trial(Slot::A, &Sha256Hex::of(b"x")).unwrap_err().code(),
            "os_slot_active"
        );
        world.boot(|_| false);
        // In the trial both are: one runs, the other is committed.
        for slot in Slot::BOTH {
            assert_eq!(world.backend.mark_unbootable(slot).unwrap_err().code(), "os_slot_active");
        }
        assert!(world.storage.writes() <= before + 2, "only the bootloader wrote");
    }
}

#[test]
fn a_slot_that_dies_is_left_after_the_limit_and_says_so() {
    for kind in KINDS {
        let mut world = running(kind);
        world.update(2).unwrap();
        world.restart(true).unwrap();
        let slot = world.boot(|slot| slot == Slot::B);
        let booted = world.backend.active().unwrap();
        assert_eq!(
            (slot, booted.trial, booted.fell_back, booted.armed),
            (Slot::A, false, true, false),
            "{kind:?}"
        );
        assert_eq!(booted.fell_why.as_deref(), Some("tries"));
        world.backend.mark_well().unwrap();
        assert!(!world.backend.active().unwrap().fell_back);
        assert_eq!(world.backend.commit(Slot::B).unwrap_err().code(), "os_not_trial");
    }
}

#[test]
fn a_release_has_only_so_many_trials_and_another_release_has_its_own() {
    for kind in KINDS {
        let mut world = running(kind);
        for _ in 0..3 {
            world.update(2).unwrap();
            world.restart(true).unwrap();
            assert_eq!(world.boot(|slot| slot == Slot::B), Slot::A);
            world.backend.mark_well().unwrap();
        }
        let error = world.update(2).unwrap_err();
        assert_eq!(error.code(), "os_trials_used", "{kind:?}: {error}");
        assert!(!world.backend.active().unwrap().armed);
        world.update(3).unwrap();
        assert_eq!(world.backend.active().unwrap().arms, 1);
    }
}

#[test]
fn a_trial_that_was_called_off_is_not_committed_and_not_booted_again() {
    for kind in KINDS {
        let mut world = running(kind);
        world.update(2).unwrap();
        world.restart(true).unwrap();
        assert_eq!(world.boot(|_| false), Slot::B);
        world.backend.rollback().unwrap();
        world.backend.rollback().unwrap();
        assert_eq!(world.backend.commit(Slot::B).unwrap_err().code(), "os_not_trial", "{kind:?}");
        world.restart(false).unwrap();
        assert_eq!(world.boot(|_| false), Slot::A);
        assert!(!world.backend.active().unwrap().fell_back, "the agent went back, not the bootloader");
    }
}

#[test]
fn without_any_boot_state_only_a_complete_slot_is_booted_and_it_is_on_trial() {
    for kind in [BackendKind::Uboot, BackendKind::Grub] {
        // b is half written: only a can be booted, and nothing follows from its name.
        let mut world = running(kind);
        world.backend.mark_unbootable(Slot::B).unwrap();
        world.damage_state();
        assert_eq!(world.boot(|_| false), Slot::A);
        let booted = world.backend.active().unwrap();
        assert_eq!((booted.trial, booted.fell_why.as_deref()), (true, Some("lost")), "{kind:?}");
        assert_eq!(
            world.backend.rollback().unwrap_err().code(),
            "os_slot_invalid",
            "there is nothing to go back to"
        );
        world.backend.commit(Slot::A).unwrap();
        world.backend.mark_well().unwrap();
        // The other way round: a is half written.
        whole_update(&mut world).unwrap();
        world.backend.mark_unbootable(Slot::A).unwrap();
        world.damage_state();
        assert_eq!(world.boot(|_| false), Slot::B);
        // Both complete: the first does not come up, the second does.
        let mut world = running(kind);
        whole_update(&mut world).unwrap();
        world.damage_state();
        assert_eq!(world.boot(|slot| slot == Slot::A), Slot::B);
        // Damaged while the device runs: what runs stays, and the state is written anew.
        world.backend.mark_well().unwrap();
        world.damage_state();
        assert_eq!(world.backend.probe().unwrap_err().code(), "os_probe_failed");
        world.backend.mark_well().unwrap();
        world.restart(false).unwrap();
        assert_eq!(world.boot(|_| false), Slot::B);
    }
}

#[test]
fn a_committed_slot_that_fails_again_and_again_gives_way_to_the_other_complete_one() {
    for kind in [BackendKind::Uboot, BackendKind::Grub] {
        let mut world = running(kind);
        whole_update(&mut world).unwrap();
        world.restart(false).unwrap();
        assert_eq!(world.boot(|slot| slot == Slot::B), Slot::A);
        let booted = world.backend.active().unwrap();
        assert_eq!(
            (booted.trial, booted.committed, booted.fell_why.as_deref()),
            (true, Slot::B, Some("sick"))
        );
        world.backend.commit(Slot::A).unwrap();
        world.restart(false).unwrap();
        assert_eq!(world.boot(|_| false), Slot::A);
        // Not if the other one is not complete.
        world.backend.mark_unbootable(Slot::B).unwrap();
        let mut boots = 0;
        let counted = std::cell::RefCell::new(&mut boots);
        let slot = world.boot(|_| {
            **counted.borrow_mut() += 1;
            **counted.borrow() < 7
        });
        assert_eq!((slot, boots), (Slot::A, 7), "{kind:?}");
    }
}

#[test]
fn the_generation_wraps_in_the_middle_of_an_update() {
    for before in 0..8_u32 {
        let mut world = World::new(BackendKind::Uboot);
        let state = super::super::state::BootState {
            generation: u32::MAX - before,
            ..super::super::state::BootState::new(Slot::A, 3)
        };
        world.storage.change(Path::new("/sim/disk"), |disk| {
            disk[4096..8192].copy_from_slice(&state.encode());
            disk[8192..12288].copy_from_slice(&state.encode());
        });
        world.boot(|_| false);
        world.backend.mark_well().unwrap();
        whole_update(&mut world).unwrap();
        world.restart(false).unwrap();
        assert_eq!(world.boot(|_| false), Slot::B);
    }
}

#[test]
fn a_bootloader_that_does_not_save_is_refused_before_the_first_write() {
    for kind in [BackendKind::Uboot, BackendKind::Grub] {
        let world = running(kind);
        let before = world.storage.writes();
        let cmdline = world.kernel.said().cmdline.clone();
        for (from, to) in
            [("copal.echo=1", "copal.echo=7"), ("copal.echo=1", ""), ("copal.fell=-", "copal.fell=nosave")]
        {
            assert!(cmdline.contains(from), "{cmdline}");
            world.kernel.said().cmdline = cmdline.replace(from, to);
            let error = world.backend.probe().unwrap_err();
            assert_eq!(error.code(), "os_probe_failed", "{error}");
        }
        if kind == BackendKind::Uboot {
            world.kernel.said().cmdline = cmdline.replace("copal.gen=", "copal.gen=ff");
            assert_eq!(world.backend.probe().unwrap_err().code(), "os_probe_failed");
        }
        assert_eq!(world.storage.writes(), before);
        // And no trial is armed with it, either.
        world.kernel.said().cmdline = cmdline.clone();
        world.install(Slot::B, 2).unwrap();
        world.kernel.said().cmdline = cmdline.replace("copal.echo=1", "copal.echo=7");
        let before = world.storage.writes();
        assert_eq!(world.backend.arm_trial(Slot::B, &Sha256Hex::of(b"x")).unwrap_err().code(), "os_arm");
        assert_eq!(world.storage.writes(), before);
    }
}

#[test]
fn a_bootloader_that_reads_another_place_is_seen_at_the_next_boot() {
    let mut world = running(BackendKind::Uboot);
    // The bootloader has its state elsewhere: what it saves is not what the agent wrote.
    let before = world.storage.bytes(Path::new("/sim/disk"));
    world.restart(false).unwrap();
    world.boot(|_| false);
    world.storage.change(Path::new("/sim/disk"), |disk| disk.copy_from_slice(&before));
    assert_eq!(world.backend.probe().unwrap_err().code(), "os_probe_failed");
}

#[test]
fn what_runs_must_be_what_the_state_says() {
    for kind in KINDS {
        let world = running(kind);
        let before = world.storage.writes();
        world.kernel.said().root = Some(Slot::B);
        let release = Sha256Hex::of(b"x");
        for error in [
            world.backend.active().unwrap_err(),
            world.backend.probe().unwrap_err(),
            world.backend.mark_unbootable(Slot::B).unwrap_err(),
            world.backend.arm_trial(Slot::B, &release).unwrap_err(),
            world.backend.commit(Slot::A).unwrap_err(),
            world.backend.rollback().unwrap_err(),
            world.backend.mark_well().unwrap_err(),
        ] {
            assert_eq!(error.code(), "os_root_mismatch", "{kind:?}: {error}");
        }
        assert_eq!(world.storage.writes(), before);
        // The kernel says b, without a trial, while the state has a.
        if kind != BackendKind::Tryboot {
            let cmdline = world.kernel.said().cmdline.replace("slot=a", "slot=b");
            world.kernel.said().cmdline = cmdline;
            assert_eq!(world.backend.active().unwrap_err().code(), "os_root_mismatch");
        }
    }
}

#[test]
fn a_count_that_cannot_be_written_arms_nothing() {
    type Break = fn(&Storage, &Path);
    let ways: [Break; 2] = [Storage::breaks, Storage::lies];
    for kind in KINDS {
        for way in ways {
            let mut world = running(kind);
            world.install(Slot::B, 2).unwrap();
            let devices = state_device(&world);
            way(&world.storage, Path::new(devices[devices.len() - 1]));
            let error = world.backend.arm_trial(Slot::B, &Sha256Hex::of(b"x")).unwrap_err();
            assert_eq!(error.code(), "os_arm", "{kind:?}: {error}");
            assert!(!world.backend.active().unwrap().armed);
            assert_eq!(world.boot(|_| false), Slot::A, "{kind:?}");
        }
    }
}

#[test]
fn a_slot_without_its_head_is_not_armed() {
    for kind in KINDS {
        let world = running(kind);
        let error = world.backend.arm_trial(Slot::B, &Sha256Hex::of(b"x")).unwrap_err();
        assert_eq!(error.code(), "os_slot_invalid", "{kind:?}: {error}");
        assert!(error.to_string().contains("-b has no"), "{error}");
    }
}

#[test]
fn a_restart_into_a_trial_tells_the_firmware_only_if_one_is_armed() {
    let mut world = running(BackendKind::Tryboot);
    assert_eq!(world.backend.reboot(true).unwrap_err().code(), "os_reboot");
    world.update(2).unwrap();
    // Someone restarts by hand: the trial is still to come, and nothing fell back.
    world.restart(false).unwrap();
    assert_eq!(world.boot(|_| false), Slot::A);
    let booted = world.backend.active().unwrap();
    assert_eq!((booted.armed, booted.fell_back), (true, false));
    world.restart(true).unwrap();
    assert_eq!(world.kernel.said().ran.last().unwrap(), &["reboot", "-f", "0 tryboot"]);
    assert_eq!(world.boot(|_| false), Slot::B);
}

#[test]
fn a_torn_autoboot_file_is_a_trial_in_the_uncommitted_slot_and_mended_in_the_committed_one() {
    for (committed_a, expect_trial) in [(true, false), (false, true)] {
        let mut world = running(BackendKind::Tryboot);
        if committed_a {
            world.update(2).unwrap();
        } else {
            whole_update(&mut world).unwrap();
        }
        let p1 = Path::new("/sim/p1");
        let text_at = world.storage.bytes(p1).windows(5).position(|w| w == b"[all]").unwrap();
        world.storage.change(p1, |bytes| bytes[text_at..text_at + 512].fill(0xff));
        // The firmware walks to partition 2: slot a.
        assert_eq!(world.boot(|_| false), Slot::A);
        let booted = world.backend.active().unwrap();
        assert_eq!(booted.trial, expect_trial);
        assert_eq!(world.backend.probe().unwrap_err().code(), "os_probe_failed");
        if expect_trial {
            assert_eq!(booted.fell_why.as_deref(), Some("walk"));
            world.backend.rollback().unwrap();
            world.restart(false).unwrap();
            assert_eq!(world.boot(|_| false), Slot::B);
        } else {
            world.backend.mark_well().unwrap();
        }
        world.backend.mark_well().unwrap();
        world.backend.probe().unwrap();
    }
}

#[test]
fn an_unsuitable_pi_is_refused_before_the_first_write() {
    let world = running(BackendKind::Tryboot);
    let before = world.storage.writes();
    world.kernel.said().vcio_missing = true;
    let error = world.backend.probe().unwrap_err();
    assert_eq!((error.code(), world.storage.writes()), ("os_probe_failed", before));
    world.kernel.said().vcio_missing = false;
    // GPT: its own entries would lie below the boot state, and the firmware has faults with it.
    world.storage.change(Path::new("/sim/disk"), |disk| disk[446 + 4] = 0xee);
    assert!(world.backend.probe().unwrap_err().to_string().contains("GPT"));
    // A first partition over the boot state.
    world.storage.change(Path::new("/sim/disk"), |disk| (disk[446 + 4], disk[446 + 8]) = (0xc, 8));
    assert!(world.backend.probe().unwrap_err().to_string().contains("covers the place"));
}

#[derive(Debug, Clone)]
enum Op {
    Install,
    Arm,
    Boot {
        trial_dies: bool,
    },
    Well,
    Commit,
    Rollback,
    /// The power goes at a write of what follows.
    Cut {
        at: usize,
        tear: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Install),
        3 => Just(Op::Arm),
        2 => Just(Op::Boot { trial_dies: false }),
        1 => Just(Op::Boot { trial_dies: true }),
        2 => Just(Op::Well),
        3 => Just(Op::Commit),
        1 => Just(Op::Rollback),
        3 => (0_usize..14, 0..Tear::ALL.len()).prop_map(|(at, tear)| Op::Cut { at, tear }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// `World::boot` asserts that only complete slots start; here: a committed slot that is well is never lost, and the slot that is
    /// committed changes only by a commit of the slot that ran on trial.
    #[test]
    fn whatever_happens_a_verified_slot_boots_and_the_committed_one_is_kept(ops in proptest::collection::vec(op(), 1..60), kind in 0_usize..3) {
        let mut world = running(KINDS[kind]);
        // What may be committed: one slot, or two while a commit was cut short. With the version in each.
        let mut committed = vec![(Slot::A, 1)];
        let mut next = 2_u8;
        for op in ops {
            let booted = world.backend.active();
            match op {
                Op::Install => {
                    next = next.wrapping_add(1).max(2);
                    let slot = booted.as_ref().map_or(Slot::B, |b| b.slot.other());
                    let _ = world.install(slot, next);
                }
                Op::Arm => {
                    if let Ok(booted) = &booted {
                        let _ = world.backend.arm_trial(booted.slot.other(), &Sha256Hex::of(&[next]));
                    }
                }
                Op::Boot { trial_dies } => {
                    let into = booted.as_ref().is_ok_and(|b| b.armed);
                    if world.restart(into).is_ok() {
                        let good: Vec<Slot> = committed.iter().map(|(slot, _)| *slot).collect();
                        world.boot(|slot| trial_dies && !good.contains(&slot));
                    }
                }
                Op::Well => { let _ = world.backend.mark_well(); }
                Op::Commit => {
                    if let Ok(booted) = &booted {
                        let was = world.version(booted.slot).unwrap();
                        let done = world.backend.commit(booted.slot);
                        if booted.trial {
                            if done.is_ok() { committed.clear(); }
                            if done.as_ref().map_or_else(|e| e.code() != "os_not_trial", |()| true) {
                                committed.push((booted.slot, was));
                            }
                        }
                    }
                }
                Op::Rollback => { let _ = world.backend.rollback(); }
                Op::Cut { at, tear } => {
                    world.storage.cut_at(at, Tear::ALL[tear]);
                    continue;
                }
            }
            if world.storage.is_dead() {
                world.boot(|_| false);
            }
            let booted = world.backend.active().unwrap();
            let kept = committed.iter().filter(|(slot, version)| *slot == booted.committed && world.version(*slot) == Some(*version));
            let kept: Vec<_> = kept.copied().collect();
            prop_assert!(!kept.is_empty(), "committed may be {committed:?}, is {booted:?}");
            committed = kept;
        }
    }
}

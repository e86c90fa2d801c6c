//! A person asks a device to look for something new, and is told what came of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use copal_protocol::testing::NOW;

mod support;
use support::{Device, FakeCloud, release};

#[tokio::test]
async fn a_check_ends_with_what_the_poll_found_and_not_before() {
    let mut cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let found = agent.updates.check().await.unwrap();
    assert!(found.contains("nothing assigned"), "{found}");

    // While a channel is up polls rest, so that only the wish brings it.
    let first = cloud.deploy(1, 10);
    agent.runs(cloud.app(), first).await;
    agent.nudges.send_modify(|nudges| nudges.up = true);
    agent.condition("settled", |c| c.fresh && c.refusal().is_none()).await;
    assert_eq!(agent.updates.check().await.unwrap(), "nothing new: assignment 1.1 is the newest");
    let second = cloud.deploy(2, 11);
    assert_eq!(agent.updates.check().await.unwrap(), "something new was found: assignment 1.2 is taken up");
    assert_eq!(agent.release_now(cloud.app()), Some(second), "it is the target when the check ends");

    let mut later = cloud.draft(3, &[second]);
    later.not_before = Some(NOW + 86_400 * 365 * 3);
    cloud.assign(&later);
    let waits = agent.updates.check().await.unwrap();
    assert!(waits.contains("waits until"), "{waits}");

    // What is refused is not well, and says its code; so does a cloud that is gone.
    let forged = cloud.publish(&release(&cloud.keys, 12), &[]);
    cloud.assign(&cloud.draft(4, &[forged]));
    assert_eq!(agent.updates.check().await.unwrap_err().code, "E_SIG_MISSING");
    cloud.go_down();
    let gone = agent.updates.check().await.unwrap_err();
    assert!(!gone.message.is_empty() && gone.code != "timeout", "{gone:?}");
}

#[tokio::test]
async fn checks_at_the_same_time_are_all_answered() {
    let cloud = FakeCloud::start().await;
    let device = Device::of(&cloud);
    let agent = device.start();
    agent.condition("enrolled", |c| c.device_id.is_some()).await;
    let first = cloud.deploy(1, 10);
    agent.runs(cloud.app(), first).await;
    let (a, b, c) = tokio::join!(agent.updates.check(), agent.updates.check(), agent.updates.check());
    for end in [a, b, c] {
        assert!(end.unwrap().starts_with("nothing new"));
    }
}

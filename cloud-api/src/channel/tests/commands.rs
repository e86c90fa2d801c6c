//! Commands from the API to a device and back.

use copal_protocol::{
    channel::{Order, Question},
    documents::{Act, Action, Delivery},
    envelope::Envelope,
    verify::{self, Verified},
};
use serde_json::json;

use super::*;
use crate::{
    auth::{Role, Scope},
    bus::Event,
};

fn action(world: &World, device: &Device, command: &channel::Command) -> Verified<Action> {
    let Order::Action(envelope) = &command.order else { panic!("{command:?}") };
    // As it came over the wire.
    let envelope = Envelope::parse::<Action>(&envelope.to_bytes()).unwrap();
    let action = verify::action(&world.fleet.trusted(), &device.identity(&world.fleet), &envelope).unwrap();
    assert_eq!(action.id, command.id);
    action
}

fn restart(delivery: &str) -> Value {
    json!({"verb": "restart_service", "args": {"service": "web"}, "delivery": delivery, "ttl_s": 600})
}

#[tokio::test]
async fn a_command_reaches_its_device_signed_and_each_step_shows() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    let mut events = world.fleet.cloud.app.bus.subscribe();
    let made = world.ask(&device, restart("direct")).await;
    assert_eq!((&made["state"], &made["ended"]), (&json!("queued"), &json!(false)));
    let command = line.command().await;
    assert_eq!(command.id.to_string(), made["id"].as_str().unwrap());
    let action = action(&world, &device, &command);
    assert_eq!(action.act, Act::RestartService { service: "web".parse().unwrap() });
    assert_eq!((action.delivery, action.ttl_s), (Delivery::Direct, 600));
    for (said, state) in [(AckState::Accepted, "accepted"), (AckState::Running, "running")] {
        line.ack(&command, said).await;
        world.until(&device, &made, state).await;
    }
    let path = format!("{}/{}?wait=30", World::commands(&device), made["id"].as_str().unwrap());
    let (waited, ()) = tokio::join!(world.fleet.ok("GET", &path, None), async {
        let done = Ack { message: "restarted\u{1b}[31m".to_owned(), ..ack(&command, AckState::Done) };
        line.say(&DeviceFrame::Ack(done)).await;
    });
    assert_eq!((&waited["state"], &waited["message"]), (&json!("done"), &json!("restarted")));
    for at in ["delivered_at", "accepted_at", "running_at", "ended_at"] {
        assert!(waited[at].is_u64(), "{at}: {waited}");
    }
    let mut told = 0;
    while let Ok(event) = events.try_recv() {
        told += u32::from(matches!(event.event, Event::Command { id, .. } if made["id"] == *id));
    }
    assert_eq!(told, 5, "asked, sent, accepted, running, done");
    let history = world.fleet.ok("GET", &format!("/api/v1/devices/{}/events", device.id), None).await;
    assert_eq!(
        (&history["items"][0]["kind"], &history["items"][0]["code"]),
        (&json!("command"), &json!("done"))
    );
    let audit = world.fleet.ok("GET", "/api/v1/audit?limit=1", None).await;
    let entry = &audit["items"][0];
    assert_eq!(
        (&entry["verb"], &entry["object"]),
        (&json!("command.create"), &json!(format!("device:{}", device.id)))
    );
    assert_eq!(
        (&entry["detail"]["command"], &entry["detail"]["verb"]),
        (&made["id"], &json!("restart_service"))
    );
}

#[tokio::test]
async fn a_direct_command_to_a_device_that_is_away_is_unreachable_and_never_sent() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let made = world.ask(&device, restart("direct")).await;
    assert_eq!((&made["state"], &made["code"]), (&json!("unreachable"), &json!("device_away")));
    assert_eq!(made["ended"], true);
    let (mut line, _) = world.open(&device).await;
    line.silence().await;
}

#[tokio::test]
async fn a_direct_command_that_nobody_fetches_is_unreachable_after_two_seconds() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    // It exchanged a moment ago, so it may come; and it does not.
    device.post(&world.fleet, "/device/v1/exchange", br#"{"frames":[]}"#.to_vec()).await;
    let made = world.ask(&device, restart("direct")).await;
    assert_eq!(made["state"], "queued");
    let path = format!("{}/{}?wait=20", World::commands(&device), made["id"].as_str().unwrap());
    assert_eq!(world.fleet.ok("GET", &path, None).await["state"], "unreachable");
}

#[tokio::test]
async fn a_direct_command_over_a_dead_line_is_unknown_soon_and_the_channel_is_cut() {
    let world = World::new().await;
    world.timing(|t| t.probe = Duration::from_millis(500));
    let device = world.fleet.device(1).await;
    // Nothing is read of this line from here on, as if nobody were there.
    let (mut line, _) = world.open(&device).await;
    let made = world.ask(&device, restart("direct")).await;
    let ended = world.until(&device, &made, "unknown").await;
    assert_eq!((&ended["code"], &ended["ended"]), (&json!("no_answer"), &json!(true)));
    world.until_closed(&device).await;
    assert_eq!(world.fleet.shown(&device).await["online"], false);
    // It was alive after all: what it did counts, and it is not told again.
    let command = line.command().await;
    let (mut line, _) = world.open(&device).await;
    line.silence().await;
    line.ack(&command, AckState::Done).await;
    world.until(&device, &made, "done").await;
}

#[tokio::test]
async fn a_direct_command_that_takes_its_time_is_waited_for_while_the_line_lives() {
    let world = World::new().await;
    world.timing(|t| t.probe = Duration::from_millis(500));
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    let made = world.ask(&device, restart("direct")).await;
    let command = line.command().await;
    // A probe is answered by whoever reads, and nothing else is said.
    let probe = within(async { line.0.next().await.unwrap().unwrap() }).await;
    assert!(matches!(probe, Message::Ping(_)), "{probe:?}");
    line.silence().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.shown(&device, &made).await["state"], "delivered");
    assert!(world.is_open(&device));
    line.ack(&command, AckState::Done).await;
    world.until(&device, &made, "done").await;
}

#[tokio::test]
async fn a_stored_command_waits_for_its_device_and_is_sent_again_until_it_ended() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let made = world.ask(&device, restart("store")).await;
    let last = world.ask(&device, json!({"verb": "reboot", "delivery": "store", "ttl_s": 60})).await;
    assert_eq!(made["state"], "queued");
    let (mut line, _) = world.open(&device).await;
    let (first, second) = (line.command().await, line.command().await);
    assert!(action(&world, &device, &first).seq < action(&world, &device, &second).seq, "in the order asked");
    assert_eq!(second.id.to_string(), last["id"].as_str().unwrap());
    line.silence().await;
    line.ack(&first, AckState::Accepted).await;
    line.ack(&second, AckState::Done).await;
    world.until(&device, &last, "done").await;
    drop(line);
    world.until_closed(&device).await;
    let (mut line, _) = world.open(&device).await;
    let again = line.command().await;
    assert_eq!((again.id, &again.order), (first.id, &first.order), "the very bytes");
    line.silence().await;
    assert_eq!(world.shown(&device, &made).await["state"], "accepted", "sending again takes nothing back");
    // The stored answer of a device that had done it before.
    line.ack(&again, AckState::Done).await;
    world.until(&device, &made, "done").await;
}

#[tokio::test]
async fn a_stored_command_whose_time_is_over_is_expired_and_never_sent() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let made = world.ask(&device, json!({"verb": "reboot", "delivery": "store", "ttl_s": 1})).await;
    let other = world.ask(&device, restart("store")).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (mut line, _) = world.open(&device).await;
    assert_eq!(line.command().await.id.to_string(), other["id"].as_str().unwrap());
    let ended = world.until(&device, &made, "expired").await;
    assert_eq!((&ended["code"], &ended["delivered_at"]), (&json!("ttl_over"), &Value::Null));

    let third = world.fleet.device(2).await;
    let made = world.ask(&third, json!({"verb": "reboot", "delivery": "store", "ttl_s": 1})).await;
    tokio::spawn(crate::commands::run(world.fleet.cloud.app.clone()));
    world.until(&third, &made, "expired").await;
}

#[tokio::test]
async fn answers_that_come_twice_late_or_out_of_order_change_nothing() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    let made = world.ask(&device, restart("direct")).await;
    let command = line.command().await;
    let rejected = Ack { code: Some("policy_local".to_owned()), ..ack(&command, AckState::Rejected) };
    line.ack(&command, AckState::Running).await;
    line.ack(&command, AckState::Accepted).await;
    line.say(&DeviceFrame::Ack(rejected)).await;
    let ended = world.until(&device, &made, "rejected").await;
    for state in [AckState::Rejected, AckState::Done, AckState::Accepted, AckState::Unknown] {
        line.ack(&command, state).await;
    }
    line.silence().await;
    assert_eq!(world.shown(&device, &made).await, ended);
    assert_eq!((&ended["code"], &ended["accepted_at"]), (&json!("policy_local"), &Value::Null));
    let history = world.fleet.ok("GET", &format!("/api/v1/devices/{}/events", device.id), None).await;
    let told = history["items"].as_array().unwrap().iter().filter(|e| e["kind"] == "command").count();
    assert_eq!(told, 1);
}

#[tokio::test]
async fn no_device_sees_or_answers_another_ones_commands() {
    let world = World::new().await;
    let (own, other) = (world.fleet.device(1).await, world.fleet.device(2).await);
    let made = world.ask(&own, restart("store")).await;
    let (mut foreign, _) = world.open(&other).await;
    foreign.silence().await;
    let (mut line, _) = world.open(&own).await;
    let command = line.command().await;
    foreign.ack(&command, AckState::Done).await;
    foreign.silence().await;
    assert_eq!(world.shown(&own, &made).await["state"], "delivered");
    let Order::Action(envelope) = &command.order else { panic!("unsigned") };
    let refused = verify::action(&world.fleet.trusted(), &other.identity(&world.fleet), envelope);
    assert_eq!(refused.unwrap_err().code.as_str(), "E_DEVICE_MISMATCH");
    let list = world.fleet.ok("GET", &World::commands(&other), None).await;
    assert_eq!(list["items"], json!([]));
    let path = format!("{}/{}", World::commands(&other), made["id"].as_str().unwrap());
    assert_eq!(world.fleet.call("GET", &path, None).await.code(), "not_found");
}

#[tokio::test]
async fn a_viewer_may_ask_for_health_and_do_nothing() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let (mut line, _) = world.open(&device).await;
    let cloud = &world.fleet.cloud;
    let viewer = cloud.user("vera@example.org", Role::Viewer).await;
    let reader = cloud.token("otto@example.org", Role::Operator, Scope::Read, None).await;
    let operator = cloud.user("olga@example.org", Role::Operator).await;
    let path = World::commands(&device);
    for verb in ["reboot", "check_update", "resume_updates", "pause_updates", "purge_data"] {
        let answer = cloud.call("POST", &path, &viewer, Some(json!({"verb": verb}))).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "role_insufficient".to_owned()));
        let answer = cloud.call("POST", &path, &reader, Some(json!({"verb": verb}))).await;
        assert_eq!(answer.code(), "scope_insufficient");
    }
    line.silence().await;
    let probes = json!({"verb": "probes", "args": {"names": ["disk"]}});
    let made = cloud.call("POST", &path, &viewer, Some(probes)).await.json();
    let command = line.command().await;
    let Order::Read(read) = &command.order else { panic!("{command:?}") };
    assert_eq!(read.what, Question::Probes { names: vec!["disk".to_owned()] });
    let result = json!({"probes": [], "taken_at": 5});
    line.say(&DeviceFrame::Ack(Ack { result: Some(result.clone()), ..ack(&command, AckState::Done) })).await;
    assert_eq!(world.until(&device, &made, "done").await["result"], result);
    let list = cloud.call("GET", &path, &viewer, None).await.json();
    assert_eq!(list["items"][0].get("result"), None, "lists stay small");
    let audit = world.fleet.ok("GET", "/api/v1/audit?limit=1", None).await;
    assert_eq!(
        (&audit["items"][0]["verb"], &audit["items"][0]["detail"]["verb"]),
        (&json!("command.create"), &json!("probes"))
    );
    assert_eq!(
        cloud.call("POST", &path, &operator, Some(json!({"verb": "reboot"}))).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn an_operator_leads_no_device_elsewhere() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let cloud = &world.fleet.cloud;
    let body =
        json!({"verb": "set_network", "args": {"ntp": ["ntp.example"]}, "delivery": "store", "ttl_s": 60});
    let round = json!({"verb": "set_network", "args": {"ntp": []}, "expect_count": 1, "delivery": "store", "ttl_s": 60});
    for (role, may) in [(Role::Operator, false), (Role::Developer, false), (Role::Admin, true)] {
        let token = cloud.user(&format!("{role}@example.org"), role).await;
        for (path, body) in
            [(World::commands(&device), &body), ("/api/v1/fleets/porch/commands".to_owned(), &round)]
        {
            let answer = cloud.call("POST", &path, &token, Some(body.clone())).await;
            if may {
                assert_eq!(answer.status, StatusCode::CREATED, "{path}");
            } else {
                assert_eq!(answer.code(), "role_insufficient", "{role} {path}");
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_a_code() {
    let world = World::new().await;
    let device = world.fleet.device(1).await;
    let path = World::commands(&device);
    let many = json!({"verb": "reboot", "delivery": "store", "ttl_s": 60});
    for (body, code) in [
        (json!({"verb": "sing"}), "verb_unknown"),
        (json!({"verb": "restart_service"}), "args_invalid"),
        (json!({"verb": "reboot", "delivery": "store"}), "ttl_missing"),
        (json!({"verb": "reboot", "ttl_s": 0}), "ttl_invalid"),
        (json!({"verb": "reboot", "delivery": "store", "ttl_s": 2_592_001}), "ttl_invalid"),
        (json!({"verb": "reboot", "now": true}), "body_invalid"),
    ] {
        assert_eq!(world.fleet.call("POST", &path, Some(body.clone())).await.code(), code, "{body}");
    }
    for _ in 0..64 {
        world.ask(&device, many.clone()).await;
    }
    assert_eq!(world.fleet.call("POST", &path, Some(many.clone())).await.code(), "too_many_commands");
    let page = world.fleet.ok("GET", &format!("{path}?limit=60"), None).await;
    let next = page["next"].as_str().unwrap();
    let rest = world.fleet.ok("GET", &format!("{path}?limit=60&after={next}"), None).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 4);

    let elsewhere = path.replace("porch", "cellar");
    assert_eq!(world.fleet.call("POST", &elsewhere, Some(many.clone())).await.code(), "not_found");
    world.fleet.ok("POST", &format!("/api/v1/devices/{}/revoke", device.id), None).await;
    assert_eq!(world.fleet.call("POST", &path, Some(many)).await.code(), "device_not_accepted");
}

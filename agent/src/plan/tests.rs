#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fmt::Write as _, sync::Arc};

use copal_protocol::ids::{AppId, Name};
use serde_json::json;

use super::{
    Action, Lane, Policy, Step, Which,
    offline::{self, TargetFile},
    plan,
    wanted::{Context, Wanted},
};
use crate::{
    engine::{Health, ImageId, RunState},
    observe::{Seen, State},
};

const APP: &str = "00112233445566778899aabbccddeeff";

fn cx() -> Context {
    Context {
        instance: "test".into(),
        prefix: "copal".into(),
        hash_key: [1; 32],
        platform: "linux/amd64".into(),
        device_id: "d".into(),
        device_type: "generic".into(),
    }
}

fn app() -> AppId {
    APP.parse().unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A release of services with their spec and image, as `{"web": ["image", {spec}]}`.
#[allow(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn target(services: serde_json::Value, rest: serde_json::Value) -> TargetFile {
    let services: serde_json::Map<_, _> = services
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, pair)| {
            let digest = copal_protocol::ids::Digest::of(pair[0].as_str().unwrap().as_bytes());
            let image = json!({"repo": "f/s", "manifest_digest": digest, "config_digest": digest, "config_size": 1,
                "size": 1, "layers": []});
            (name.clone(), json!({"spec": pair[1], "images": {"linux/amd64": image}}))
        })
        .collect();
    let mut release = json!({"spec": 1, "fleet_id": APP, "kind": "app", "app_id": APP, "counter": 1,
        "version": "1.0.0", "created_at": 1, "services": services});
    release.as_object_mut().unwrap().extend(rest.as_object().cloned().unwrap_or_default());
    serde_json::from_value(json!({"apps": {APP: {"release": release}}})).unwrap()
}

fn wanted(file: &TargetFile) -> Wanted {
    offline::wanted(&cx(), file).unwrap()
}

fn id(n: usize) -> String {
    offline::made_up_id(n)
}

fn realised(wanted: &Wanted) -> State {
    offline::running(&cx(), wanted)
}

fn with_images(mut state: State, wanted: &Wanted) -> State {
    for service in wanted.apps.values().flat_map(|a| a.services.values()) {
        let digest = service.image.config_digest;
        state.images.insert(digest, ImageId(digest.to_string()));
    }
    state
}

fn text(state: &State, wanted: &Wanted) -> String {
    plan(state, wanted, &Policy { prefix: "copal".into(), ..Policy::default() }).to_string()
}

/// From what runs one release to another.
fn update(from: &TargetFile, to: &TargetFile) -> String {
    text(&realised(&wanted(from)), &wanted(to))
}

fn whole(wanted: &Wanted) -> Wanted {
    let mut out = wanted.clone();
    for app in out.apps.values_mut() {
        Arc::make_mut(app).whole = true;
    }
    out
}

fn seen<'a>(state: &'a mut State, service: &str) -> &'a mut Vec<Seen> {
    state.apps.get_mut(&app()).unwrap().services.get_mut(&name(service)).unwrap()
}

fn three(web: &str) -> TargetFile {
    target(
        json!({
            "web": [web, {"depends_on": {"db": {"condition": "service_healthy"}}, "ports": [{"target": 80, "published": 80, "protocol": "tcp"}]}],
            "db": ["db1", {"mounts": {"/data": {"type": "volume", "source": "data"}}, "healthcheck": {"test": ["CMD", "true"]}}],
            "init": ["init1", {"restart": "no"}],
        }),
        json!({"volumes": {"data": {}}}),
    )
}

#[test]
fn install() {
    insta::assert_snapshot!(text(&State::default(), &wanted(&three("web1"))));
}

#[test]
fn install_with_the_images_here_and_the_networks_made() {
    let want = wanted(&three("web1"));
    let mut state = with_images(realised(&want), &want);
    state.apps.get_mut(&app()).unwrap().services.clear();
    insta::assert_snapshot!(text(&state, &want));
}

#[test]
fn what_is_as_wanted_is_left_alone() {
    let want = wanted(&three("web1"));
    let mut state = realised(&want);
    // A one-shot that has ended well stays ended.
    let init = &mut seen(&mut state, "init")[0].container;
    (init.state, init.exit_code) = (RunState::Exited, 0);
    assert_eq!(text(&state, &want), "nothing to do\n");
    let init = &mut seen(&mut state, "init")[0].container;
    init.exit_code = 1;
    assert_eq!(text(&state, &want), "nothing to do\n", "one that failed is judged, not repeated");
}

#[test]
fn a_service_that_a_person_stopped_is_stopped_and_left_so() {
    let want = wanted(&three("web1"));
    let mut state = realised(&want);
    let held = Policy { prefix: "copal".into(), held: [(app(), name("web"))].into(), ..Policy::default() };
    let stop = plan(&state, &want, &held);
    let app_plan = &stop.apps[&app()];
    let web = &app_plan.lanes[&Lane::Service(name("web"))];
    let id = seen(&mut state, "web")[0].container.id.clone();
    assert_eq!(web.steps, [Step { action: Action::Stop { id, grace_s: 10 }, after: Vec::new() }]);
    assert_eq!(stop.steps(), 1, "{stop}");
    seen(&mut state, "web")[0].container.state = RunState::Exited;
    assert!(plan(&state, &want, &held).is_empty());
    // Nor is it made where it is gone.
    seen(&mut state, "web").clear();
    assert!(plan(&with_images(state.clone(), &want), &want, &held).is_empty());
    assert!(!plan(&state, &want, &Policy { held: Default::default(), ..held }).is_empty());
}

#[test]
fn a_restart_is_planned_for_the_run_it_was_asked_of_and_for_no_other() {
    let want = wanted(&three("web1"));
    let mut state = realised(&want);
    // What it depends on is not well: a person wants it restarted all the same.
    seen(&mut state, "db")[0].container.health = Health::Unhealthy;
    let container = seen(&mut state, "web")[0].container.clone();
    let policy = Policy {
        prefix: "copal".into(),
        restart: [((app(), name("web")), (container.id.clone(), container.started_at.clone()))].into(),
        ..Policy::default()
    };
    let steps = |state: &State| -> Vec<Action> {
        let plan = plan(state, &want, &policy);
        let lanes = plan.apps.get(&app()).map(|a| a.lanes.clone()).unwrap_or_default();
        lanes.into_values().flat_map(|lane| lane.steps).map(|step| step.action).collect()
    };
    let id = container.id;
    let start = Action::Start(Which::Id(id.clone()));
    assert_eq!(steps(&state), [Action::Stop { id, grace_s: 10 }, start.clone()]);
    // Cut short between the two.
    seen(&mut state, "web")[0].container.state = RunState::Exited;
    assert_eq!(steps(&state), [start]);
    let again = &mut seen(&mut state, "web")[0].container;
    (again.state, again.started_at) = (RunState::Running, "later".into());
    assert_eq!(steps(&state), []);
}

#[test]
fn one_service_changed() {
    insta::assert_snapshot!(update(&three("web1"), &three("web2")));
}

#[test]
fn on_trial_nothing_that_runs_is_touched_before_all_images_are_here() {
    let from = target(json!({"a": ["a1", {}], "b": ["b1", {}], "gone": ["g", {}]}), json!({}));
    let to = whole(&wanted(&target(json!({"a": ["a2", {}], "b": ["b2", {}]}), json!({}))));
    let mut state = realised(&wanted(&from));
    insta::assert_snapshot!("whole_without_images", text(&state, &to));
    state = with_images(state, &to);
    insta::assert_snapshot!("whole_with_images", text(&state, &to));
}

#[test]
fn a_service_and_an_app_removed() {
    let from = target(
        json!({"a": ["a1", {"networks": {"back": {}}}], "b": ["b1", {}]}),
        json!({"volumes": {"data": {}}}),
    );
    let to = target(json!({"b": ["b1", {}]}), json!({}));
    insta::assert_snapshot!("service_removed", update(&from, &to));
    insta::assert_snapshot!("app_removed", text(&realised(&wanted(&from)), &Wanted::default()));
}

#[test]
fn a_changed_network_is_made_anew_under_running_containers() {
    let net = |internal: bool| {
        target(
            json!({"a": ["a1", {"networks": {"lan": {}}}]}),
            json!({"networks": {"lan": {"internal": internal}}}),
        )
    };
    insta::assert_snapshot!("network_changed", update(&net(false), &net(true)));
    let want = wanted(&net(true));
    let mut state = realised(&want);
    seen(&mut state, "a")[0].container.networks.clear();
    insta::assert_snapshot!("network_joined_again", text(&state, &want));
}

#[test]
fn a_stopped_container_of_a_network_that_is_gone_is_made_anew() {
    let want = wanted(&target(json!({"a": ["a1", {}]}), json!({})));
    let mut state = with_images(realised(&want), &want);
    let a = &mut seen(&mut state, "a")[0].container;
    a.state = RunState::Exited;
    a.networks.values_mut().for_each(|id| *id = "stale".into());
    insta::assert_snapshot!(text(&state, &want));
}

#[test]
fn a_volume_asked_for_otherwise_keeps_its_data() {
    let with = |opts: serde_json::Value| {
        let mount = json!({"mounts": {"/d": {"type": "volume", "source": "data"}}});
        target(json!({"a": ["a1", mount]}), json!({"volumes": {"data": {"driver_opts": opts}}}))
    };
    insta::assert_snapshot!(update(&with(json!({})), &with(json!({"type": "tmpfs"}))));
}

#[test]
fn strategies() {
    let mut all = String::new();
    for strategy in ["download-then-kill", "kill-then-download", "delete-then-download", "hand-over"] {
        let spec = json!({"labels": {"io.copal.update.strategy": strategy}});
        let file = |image: &str| target(json!({"a": [image, spec]}), json!({}));
        writeln!(all, "{strategy}\n{}", update(&file("a1"), &file("a2"))).unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_hand_over_that_was_cut_short_is_taken_up() {
    let spec = json!({"labels": {"io.copal.update.strategy": "hand-over"}});
    let old = wanted(&target(json!({"a": ["a1", spec]}), json!({})));
    let new = wanted(&target(json!({"a": ["a2", spec]}), json!({})));
    let mut state = with_images(realised(&old), &new);
    let mut next = realised(&new).apps[&app()].services[&name("a")][0].clone();
    next.container.id = id(9);
    next.container.name = "copal-00112233.1-a".into();
    seen(&mut state, "a").push(next);
    insta::assert_snapshot!(text(&state, &new));
}

#[test]
fn of_several_containers_of_a_service_exactly_one_stays() {
    let want = wanted(&target(json!({"a": ["a1", {}]}), json!({})));
    let mut state = realised(&want);
    for (n, running) in [(7, RunState::Running), (8, RunState::Exited)] {
        let mut twin = seen(&mut state, "a")[0].clone();
        (twin.container.id, twin.container.name, twin.container.state) =
            (id(n), format!("twin-{n}"), running);
        seen(&mut state, "a").push(twin);
    }
    insta::assert_snapshot!(text(&state, &want));
}

#[test]
fn foreign_holders_of_wanted_names_are_left_alone_and_others_go_on() {
    let mount = json!({"mounts": {"/d": {"type": "volume", "source": "data"}}});
    let want = wanted(&target(
        json!({"a": ["a1", {}], "b": ["b1", {"networks": {"lan": {}}}], "c": ["c1", mount], "d": ["d1", {}]}),
        json!({}),
    ));
    let mut state = with_images(State::default(), &want);
    state.foreign.containers.insert("copal-00112233-a".into());
    state.foreign.networks.insert("copal-00112233-lan".into());
    state.foreign.volumes.insert("copal-00112233-data".into());
    insta::assert_snapshot!(text(&state, &want));
}

#[test]
fn services_that_share_a_namespace_follow_each_other() {
    let file = |image: &str| {
        target(json!({"vpn": [image, {}], "app": ["app1", {"network_mode": "service:vpn"}]}), json!({}))
    };
    let want = wanted(&file("vpn1"));
    assert_eq!(text(&realised(&want), &want), "nothing to do\n");
    insta::assert_snapshot!(update(&file("vpn1"), &file("vpn2")));
}

#[test]
fn a_failed_one_shot_fails_what_waits_for_it() {
    let want = wanted(&target(
        json!({"web": ["web1", {"depends_on": {"init": {"condition": "service_completed_successfully"}}}], "init": ["i1", {}]}),
        json!({}),
    ));
    let mut state = with_images(realised(&want), &want);
    state.apps.get_mut(&app()).unwrap().services.remove(&name("web"));
    let init = &mut seen(&mut state, "init")[0].container;
    (init.state, init.exit_code) = (RunState::Exited, 3);
    insta::assert_snapshot!(text(&state, &want));
}

#[test]
fn a_container_the_engine_cannot_describe_hides_no_other() {
    let want = wanted(&target(json!({"a": ["a1", {}], "b": ["b1", {}]}), json!({})));
    let mut state = realised(&want);
    seen(&mut state, "a")[0].container.unreadable = Some("500".into());
    seen(&mut state, "b")[0].container.state = RunState::Exited;
    insta::assert_snapshot!(text(&state, &want));
}

#[test]
fn what_the_steps_lead_to_is_what_was_wanted() {
    // The order of the JSON's lists and maps does not matter; ports, `restart: "no"` and exposed ports neither.
    let spec = json!({"ports": [{"target": 81, "protocol": "tcp"}, {"target": 80, "protocol": "tcp"}], "restart": "no",
        "expose": ["80/tcp", "9000/tcp"]});
    let want = wanted(&target(json!({"a": ["a1", spec]}), json!({})));
    assert_eq!(text(&realised(&want), &want), "nothing to do\n");
}

#[test]
fn a_hundred_services_are_planned_and_then_left_alone() {
    let want = wanted(&offline::sample(100));
    let first = plan(&State::default(), &want, &Policy { prefix: "copal".into(), ..Policy::default() });
    // Download, create and start each; one network; a volume for every third.
    assert_eq!(first.steps(), 3 * 100 + 1 + 34);
    assert_eq!(text(&realised(&want), &want), "nothing to do\n");
}

#[test]
fn a_state_and_a_target_survive_being_files() {
    let file = three("web1");
    let state = realised(&wanted(&file));
    let state: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    let file: TargetFile = serde_json::from_str(&serde_json::to_string(&file).unwrap()).unwrap();
    assert!(offline::plan(&cx(), &state, &file).unwrap().is_empty());
    // What runs may be given as a release, too.
    let json = serde_json::to_string(&file).unwrap();
    let given: offline::StateFile = serde_json::from_str(&json).unwrap();
    let state = given.state(&cx()).unwrap();
    assert!(offline::plan(&cx(), &state, &file).unwrap().is_empty());
    let given: offline::StateFile = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
    assert_eq!(given.state(&cx()).unwrap(), state);
}

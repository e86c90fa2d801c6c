//! What people ask of services, against an engine in memory, in virtual time.

use tokio::sync::oneshot;

use super::*;
use crate::supervisor::asks::Ask;

impl Device {
    async fn ask(&self, what: Ask) -> Result<String, Reason> {
        self.begin(what).await.await.unwrap()
    }

    async fn begin(&self, what: Ask) -> oneshot::Receiver<Result<String, Reason>> {
        let (answer, heard) = oneshot::channel();
        assert!(self.asking.send(Asked { what, answer }).await.is_ok());
        heard
    }

    fn run_of(&self, service: &str) -> (String, String) {
        let c = self.fake().by_name(&format!("copal-00112233-{service}")).unwrap();
        (c.id, c.started_at)
    }

    fn state_of(&self, service: &str) -> Option<RunState> {
        self.fake().by_name(&format!("copal-00112233-{service}")).map(|c| c.state)
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_restarted_service_keeps_its_container_and_nothing_else_is_touched() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let (db, web) = (device.run_of("db"), device.run_of("web"));
    assert_eq!(device.ask(Ask::Restart(name("web"))).await.unwrap(), "it runs");
    let again = device.run_of("web");
    assert_eq!(again.0, web.0);
    assert_ne!(again.1, web.1);
    let writes = device.fake().writes();
    device.rest().await;
    assert_eq!(device.fake().writes(), writes, "once, and no more");
    assert_eq!(device.run_of("db"), db);
    assert_eq!(device.ask(Ask::Restart(name("nobody"))).await.unwrap_err().code, "service_unknown");
}

#[tokio::test(start_paused = true)]
async fn whoever_shares_its_namespaces_is_restarted_after_it() {
    let app = app_target(
        &json!({"web": ["web1", {"command": ["runs"]}],
            "beside": ["b1", {"command": ["runs"], "network_mode": "service:web"}]}),
        json!({}),
    );
    let device = Device::installed(&[app]).await;
    let before = device.run_of("beside");
    device.ask(Ask::Restart(name("web"))).await.unwrap();
    let (web, beside) = (device.run_of("web"), device.run_of("beside"));
    assert_ne!(beside.1, before.1);
    assert!(beside.1.parse::<u64>().unwrap() > web.1.parse::<u64>().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_service_stays_stopped_until_it_is_started() {
    let mut device = Device::installed(&[three("web1", "runs")]).await;
    let web = device.run_of("web");
    device.ask(Ask::Stop(name("web"))).await.unwrap();
    assert_eq!(device.state_of("web"), Some(RunState::Exited));
    device.rest().await;
    device.restart().await;
    device.rest().await;
    assert_eq!(device.state_of("web"), Some(RunState::Exited), "over resyncs and a restart of the agent");
    assert_eq!(device.code(), "stopped");
    assert_eq!(device.state_of("db"), Some(RunState::Running));
    device.ask(Ask::Start(name("web"))).await.unwrap();
    assert_eq!(device.run_of("web").0, web.0);
    device.until("nothing is said of it any more", |d| d.code().is_empty()).await;
    let run = device.run_of("web");
    device.ask(Ask::Start(name("web"))).await.unwrap();
    assert_eq!(device.run_of("web"), run, "what runs is not started again");
}

#[tokio::test(start_paused = true)]
async fn another_release_ends_a_stop() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.ask(Ask::Stop(name("web"))).await.unwrap();
    device.set(target(&[three("web2", "runs")], 2));
    device.until("updated", |d| d.applied() == Some(2)).await;
    assert_eq!(device.state_of("web"), Some(RunState::Running));
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_a_trial_neither_fails_nor_passes_it() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.set(target(&[three("web2", "runs")], 2));
    device.until("on trial", |d| d.code() == "trial").await;
    device.ask(Ask::Stop(name("web"))).await.unwrap();
    for _ in 0..20 {
        device.rest().await;
    }
    assert_eq!((device.code().as_str(), device.applied()), ("stopped", Some(1)));
    device.ask(Ask::Start(name("web"))).await.unwrap();
    device.until("committed", |d| d.applied() == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_the_contrary_ends_what_was_asked_before() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    // It does not come to rest: its lane is kept from it by an engine that is away.
    device.fake().world(|w| w.absent = true);
    let stop = device.begin(Ask::Stop(name("web"))).await;
    device.fake().world(|w| w.absent = false);
    device.ask(Ask::Start(name("web"))).await.unwrap();
    let stopped = stop.await.unwrap();
    assert!(stopped.is_ok() || stopped.unwrap_err().code == "superseded");
    assert_eq!(device.state_of("web"), Some(RunState::Running));
}

#[tokio::test(start_paused = true)]
async fn purging_makes_volumes_anew_and_keeps_images() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let (db, downloads) = (device.run_of("db"), device.durable.book(|b| b.downloads));
    let removed = |d: &Device| {
        d.fake().world(|w| w.writes.iter().filter(|line| line.starts_with("remove volume")).count())
    };
    assert_eq!(device.ask(Ask::Purge(Some(name("other")))).await.unwrap_err().code, "volume_unknown");
    assert_eq!((removed(&device), device.run_of("db")), (0, db.clone()));
    device.ask(Ask::Purge(Some(name("data")))).await.unwrap();
    assert_eq!(removed(&device), 1);
    assert_eq!(device.runs(), V1);
    assert_ne!(device.run_of("db").0, db.0);
    device.fake().world(|w| assert_eq!(w.volumes.len(), 1));
    device.ask(Ask::Purge(None)).await.unwrap();
    assert_eq!((removed(&device), device.runs()), (2, V1.map(str::to_owned).to_vec()));
    assert_eq!(device.durable.book(|b| b.downloads), downloads, "images stay");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_told_with_its_cause() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    device.fake().world(|w| w.absent = true);
    let why = device.ask(Ask::Restart(name("web"))).await.unwrap_err();
    assert_eq!(why.code, "engine_absent");
    device.fake().world(|w| w.absent = false);
    // Whoever asks after that is served.
    device.ask(Ask::Restart(name("web"))).await.unwrap();
}

/// Kills the agent at every effect of a purge: whatever was done, the services run again.
#[tokio::test(start_paused = true)]
async fn dying_anywhere_in_a_purge_ends_running() {
    for at in 0..40 {
        let mut device = Device::installed(&[three("web1", "runs")]).await;
        let number = device.fake().writes() + at;
        device.fake().world(|w| w.dies_at = Some((number, true)));
        let answer = device.begin(Ask::Purge(None)).await;
        device.rest().await;
        let died = device.fake().died();
        device.restart().await;
        device.until("all is there again", |d| d.runs() == V1).await;
        device.fake().world(|w| assert_eq!(w.volumes.len(), 1, "died at {at}"));
        if !died {
            assert!(answer.await.unwrap().is_ok());
            assert!(at > 5, "too few effects to mean anything: {at}");
            return;
        }
    }
    panic!("never came to an end");
}

#[tokio::test(start_paused = true)]
async fn while_updates_are_paused_that_is_the_reason_and_what_runs_goes_on() {
    let device = Device::installed(&[three("web1", "runs")]).await;
    let next = |paused: bool| {
        let target = (*target(&[three("web2", "runs")], 2)).clone();
        Arc::new(Target { may_install: !paused, paused, ..target })
    };
    device.set(next(true));
    device.until("said", |d| d.code() == "paused").await;
    device.rest().await;
    assert_eq!(device.runs(), V1);
    // What is asked of services is done meanwhile.
    device.ask(Ask::Restart(name("web"))).await.unwrap();
    device.set(next(false));
    device.until("updated", |d| d.applied() == Some(2)).await;
}

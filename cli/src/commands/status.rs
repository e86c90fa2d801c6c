//! How a fleet fares; with `--watch`, as it changes. Events only say when to look again: what is shown is always what
//! the server answers then, so that a lost event can delay, never mislead.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use super::devices::{query, reason, release_word, row};
use crate::{
    args::Status,
    context::Context,
    failure::{Kind, Result},
    http::{Api, Events, seg},
    output::{safe, scalar, short, table, text},
};

/// Looks at least this often, events or not.
const RESYNC: Duration = Duration::from_secs(10);
/// Lets events that come together be answered by one look.
const DEBOUNCE: Duration = Duration::from_millis(300);

pub(super) async fn run(ctx: &Context, args: Status) -> Result<()> {
    let api = ctx.api()?;
    let fleet = ctx.fleet(&api, args.which.as_deref()).await?.slug;
    let query = query(args.filter.as_ref());
    if args.watch {
        return Box::pin(watch(ctx, &api, &fleet, &query, args.until_on_target)).await;
    }
    let (fleet, devices) = look(&api, &fleet, &query).await?;
    ctx.out.result(&json!({ "fleet": fleet, "devices": devices }), || {
        let rows = devices.iter().map(|d| row(d, ctx.now));
        let columns = ["device", "id", "state", "seen", "release", "os", "on target", "why not"];
        format!("{}\n{}", headline(&fleet), table(&columns, rows))
    });
    Ok(())
}

/// The fleet, and those of its devices that are asked for.
async fn look(api: &Api, slug: &str, query: &str) -> Result<(Value, Vec<Value>)> {
    let what = format!("show the status of fleet {slug}");
    let fleet = api.get(&what, &format!("/fleets/{}", seg(slug))).await?;
    let devices = api.all(&what, &format!("/fleets/{}/devices", seg(slug)), query).await?;
    Ok((fleet, devices))
}

fn headline(fleet: &Value) -> String {
    let count = |field: &str| scalar(&fleet["devices"][field]);
    let pinned = if fleet["pinned_release"].is_string() { ", pinned" } else { "" };
    format!(
        "{}: {} of {} on target, {} online, {} failed; release {}{pinned}",
        safe(&text(fleet, "slug")),
        count("on_target"),
        count("total"),
        count("online"),
        count("failed"),
        Some(short(&text(fleet, "target_release")))
            .filter(|r| !r.is_empty())
            .unwrap_or_else(|| "none".to_owned()),
    )
}

/// What one device does, in one line, and how far it is.
fn line(device: &Value, now: u64) -> (String, Option<(u64, u64)>) {
    // The app's first: while it moves, the operating system waits.
    let places = [&device["progress"], &device["os"]["progress"], &device["agent"]["progress"]];
    let progress = places.into_iter().find(|p| p.is_object()).unwrap_or(&Value::Null);
    let (done, total) = (progress["done"].as_u64().unwrap_or(0), progress["total"].as_u64().unwrap_or(0));
    let stage = text(progress, "stage");
    let said = if device["on_target"] == true {
        format!("runs {}", release_word(device))
    } else if stage == "trial" {
        // Without an end some service is not up yet; past it, the device's word that all went well is on its way.
        match progress["trial_ends"].as_u64().map(|ends| ends.saturating_sub(now)) {
            Some(left @ 1..) => format!("on trial, {left} s to go"),
            Some(0) => "on trial, about to end".to_owned(),
            None => "on trial, waiting for its services".to_owned(),
        }
    } else if !stage.is_empty() {
        stage
    } else {
        Some(reason(device)).filter(|r| !r.is_empty()).unwrap_or_else(|| text(device, "state"))
    };
    let known = (total > 0 && device["on_target"] != true).then_some((done.min(total), total));
    (safe(&said), known)
}

/// Draws on a terminal, else prints a line for every change.
struct Screen<'a> {
    ctx: &'a Context,
    bars: Option<MultiProgress>,
    head: Option<ProgressBar>,
    devices: BTreeMap<String, (Option<ProgressBar>, String)>,
    last_head: String,
}

impl<'a> Screen<'a> {
    fn new(ctx: &'a Context) -> Self {
        let bars = ctx.out.interactive().then(MultiProgress::new);
        Self { ctx, bars, head: None, devices: BTreeMap::new(), last_head: String::new() }
    }

    fn show(&mut self, fleet: &Value, devices: &[Value], now: u64) {
        if self.ctx.out.json {
            let text = json!({ "fleet": fleet, "devices": devices }).to_string();
            if text != self.last_head {
                self.ctx.out.line(&text);
                self.last_head = text;
            }
            return;
        }
        let head = headline(fleet);
        if head != self.last_head {
            match &self.bars {
                Some(bars) => {
                    let bar = self.head.get_or_insert_with(|| bars.insert(0, plain_bar()));
                    bar.set_message(head.clone());
                    bar.tick();
                }
                None => self.ctx.out.line(&head),
            }
            self.last_head = head;
        }
        for device in devices {
            let id = text(device, "device_id");
            let name = safe(&text(device, "name"));
            let (said, progress) = line(device, now);
            let slot = self.devices.entry(id).or_insert_with(|| {
                let bar = self.bars.as_ref().map(|bars| bars.add(plain_bar()));
                (bar, String::new())
            });
            match &slot.0 {
                Some(bar) => draw(bar, &name, &said, progress),
                None if slot.1 != said => self.ctx.out.line(&format!("{name}: {said}")),
                None => {}
            }
            slot.1 = said;
        }
        self.devices.retain(|id, (bar, _)| {
            let kept = devices.iter().any(|d| text(d, "device_id") == *id);
            if let (false, Some(bar)) = (kept, bar) {
                bar.finish_and_clear();
            }
            kept
        });
    }
}

fn plain_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_style(style("{msg}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn draw(bar: &ProgressBar, name: &str, said: &str, progress: Option<(u64, u64)>) {
    match progress {
        Some((done, total)) => {
            bar.set_style(style("{msg} [{bar:30}] {bytes}/{total_bytes}"));
            bar.set_length(total);
            bar.set_position(done);
        }
        None => bar.set_style(style("{msg}")),
    }
    bar.set_message(format!("  {name:24} {said}"));
    bar.tick();
}

async fn watch(ctx: &Context, api: &Api, slug: &str, query: &str, until_on_target: bool) -> Result<()> {
    let mut screen = Screen::new(ctx);
    let mut feed = Feed { api, slug, events: Events::default(), stream: None };
    let clock = copal_tls::system_clock();
    loop {
        match look(api, slug, query).await {
            Ok((fleet, devices)) => {
                screen.show(&fleet, &devices, clock());
                // Without a filter a fleet may still wait for its first device; that no device is so any more is what one waits for.
                let any = !devices.is_empty() || !query.is_empty();
                if until_on_target && any && devices.iter().all(|d| d["on_target"] == true) {
                    return Ok(());
                }
            }
            // A server that restarts is waited for; one that refuses is not.
            Err(failure) if matches!(failure.kind, Kind::Network | Kind::Timeout) => {
                ctx.out.remark(format!("{}; trying again", failure.why));
                feed.stream = None;
                tokio::time::sleep(Duration::from_secs(3)).await;
                continue;
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = feed.changed() => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep(RESYNC) => {}
            stop = tokio::signal::ctrl_c() => {
                let _ = stop;
                return Ok(());
            }
        }
    }
}

type Stream = std::pin::Pin<Box<dyn futures_util::Stream<Item = Option<Vec<u8>>> + Send>>;

/// The server's events of one fleet. Where they cannot be had, it waits, and the regular look stays.
struct Feed<'a> {
    api: &'a Api,
    slug: &'a str,
    events: Events,
    stream: Option<Stream>,
}

impl Feed<'_> {
    /// Returns when something changed.
    async fn changed(&mut self) {
        loop {
            if self.stream.is_none() && !self.connect().await {
                tokio::time::sleep(Duration::from_secs(5)).await;
                // Poll instead: say that something may have changed.
                return;
            }
            let Some(stream) = &mut self.stream else { continue };
            match stream.next().await {
                Some(Some(bytes)) => match self.events.feed(&bytes) {
                    Ok(events) if events.is_empty() => {}
                    Ok(_) => return,
                    Err(_) => self.stream = None,
                },
                _ => {
                    self.stream = None;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn connect(&mut self) -> bool {
        let mut request = self.api.request(Method::GET, &format!("/events?fleet={}", seg(self.slug)));
        request = request.header(reqwest::header::ACCEPT, "text/event-stream");
        if let Some(id) = &self.events.last_id {
            request = request.header("Last-Event-ID", id);
        }
        let answer = self.api.send("follow the events", request).await;
        self.events = Events::after(self.events.last_id.take());
        match answer {
            Ok(response) => {
                self.stream =
                    Some(Box::pin(response.bytes_stream().map(|chunk| chunk.ok().map(|b| b.to_vec()))));
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_device_does() {
        let said = |device: Value| line(&device, 100);
        let on = json!({ "on_target": true, "committed_release": "0123456789abcdef" });
        assert_eq!(said(on), ("runs 0123456789ab".to_owned(), None));
        let loading =
            json!({ "on_target": false, "progress": { "stage": "downloading", "done": 5, "total": 10 } });
        assert_eq!(said(loading), ("downloading".to_owned(), Some((5, 10))));
        let trial = json!({ "on_target": false, "progress": { "stage": "trial", "done": 0, "total": 0, "trial_ends": 130 } });
        assert_eq!(said(trial), ("on trial, 30 s to go".to_owned(), None));
        let waits = json!({ "on_target": false, "progress": { "stage": "trial", "trial_ends": null } });
        assert_eq!(said(waits).0, "on trial, waiting for its services");
        let over = json!({ "on_target": false, "progress": { "stage": "trial", "trial_ends": 99 } });
        assert_eq!(said(over).0, "on trial, about to end");
        let os = json!({ "on_target": false, "os": { "progress": { "stage": "os_downloading", "done": 1, "total": 4 } } });
        assert_eq!(said(os), ("os_downloading".to_owned(), Some((1, 4))));
        let back = json!({ "on_target": false, "reason": { "code": "rolled_back", "message": "web exited \u{1b}[2J" } });
        assert_eq!(said(back).0, "rolled_back: web exited \\u{1b}[2J");
    }
}

//! What a device told of itself: what happened on it, how it fares, what it has.

use copal_protocol::text::one_line;
use futures_util::StreamExt as _;
use reqwest::{Method, header};
use serde_json::Value;

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, Events, seg},
    output::{ago, bytes, pairs, scalar, table, text, when},
};

/// What to list of events.
pub(super) struct Asked {
    pub(super) limit: usize,
    /// At most so many seconds ago.
    pub(super) since: Option<u64>,
    pub(super) kind: Option<String>,
}

fn path(device: &Value, of: &str) -> String {
    format!("/fleets/{}/devices/{}/{of}", seg(&text(device, "fleet")), seg(&text(device, "device_id")))
}

/// Lists events, newest heard of first.
pub(super) async fn events(ctx: &Context, api: &Api, device: &str, asked: Asked) -> Result<()> {
    let found = ctx.device(api, device).await?;
    let mut query = String::new();
    if let Some(ago) = asked.since {
        query.push_str(&format!("&since={}", ctx.now.saturating_sub(ago)));
    }
    if let Some(kind) = &asked.kind {
        query.push_str(&format!("&kind={}", seg(kind)));
    }
    let events = api.some("list the events", &path(&found, "events"), &query, asked.limit).await?;
    ctx.out.list(&events, &["at", "kind", "code", "message"], |e| {
        vec![when(&e["at"]), text(e, "kind"), text(e, "code"), text(e, "message")]
    });
    Ok(())
}

/// Shows how a device fared, or fares.
pub(super) async fn metrics(ctx: &Context, api: &Api, device: &str, span: u64, watch: bool) -> Result<()> {
    let found = ctx.device(api, device).await?;
    if watch {
        return follow(ctx, api, &found).await;
    }
    let query = format!("?from={}&to={}", ctx.now.saturating_sub(span), ctx.now);
    let what = format!("show the metrics of device {}", text(&found, "name"));
    let metrics = api.get(&what, &format!("{}{query}", path(&found, "metrics"))).await?;
    ctx.out.result(&metrics, || {
        let points = metrics["points"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(last) = points.last() else {
            return "nothing was measured in that time; a device tells once an hour (see it now: --watch)"
                .to_owned();
        };
        let mut out = table(&COLUMNS, points.iter().map(|p| row(when(&p["at"]), &p["device"], p)));
        let services: Vec<Vec<String>> = last["services"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, of)| row(name.clone(), of, last))
            .collect();
        if !services.is_empty() {
            out.push_str("\n\nservices, newest\n");
            let columns = [&["service"], &COLUMNS[1..]].concat();
            out.push_str(&table(&columns, services.into_iter()));
        }
        out
    });
    Ok(())
}

const COLUMNS: [&str; 8] = ["at", "cpu", "cpu most", "memory", "disk", "written", "in, out", "temperature"];

/// A line of the device or of a service.
fn row(name: String, of: &Value, point: &Value) -> Vec<String> {
    let gauge = |name: &str, part: &str| of["gauges"][name][part].as_i64();
    let counter = |name: &str| of["counters"][name].as_u64();
    let size = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).map(bytes).unwrap_or_default();
    // Thousandths of a core.
    let cores = |n: Option<i64>| n.map(|n| format!("{} %", n / 10)).unwrap_or_default();
    let seconds = point["for_s"].as_u64().unwrap_or(0).max(1);
    let rate = |n: Option<u64>| n.map(|n| format!("{}/s", bytes(n / seconds))).unwrap_or_default();
    let net = [rate(counter("net_in")), rate(counter("net_out"))];
    vec![
        name,
        cores(gauge("cpu", "avg")),
        cores(gauge("cpu", "max")),
        size(gauge("memory", "avg")),
        size(gauge("disk", "last")),
        counter("disk_written").map(bytes).unwrap_or_default(),
        net.iter().filter(|n| !n.is_empty()).cloned().collect::<Vec<_>>().join(", "),
        gauge("temperature", "max").map(|t| format!("{} °C", t / 1000)).unwrap_or_default(),
    ]
}

/// Prints samples as they come.
async fn follow(ctx: &Context, api: &Api, device: &Value) -> Result<()> {
    let what = format!("watch device {}", text(device, "name"));
    ctx.out.remark("a sample every 5 s; end with Ctrl-C");
    loop {
        let request = api
            .request(Method::GET, path(device, "metrics/live").as_str())
            .header(header::ACCEPT, "text/event-stream");
        let response = api.send(&what, request).await?;
        let mut stream = response.bytes_stream();
        let mut events = Events::default();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| api.transport(&what, &e))?;
            for event in events.feed(&chunk)? {
                if let Some(code) = event["code"].as_str() {
                    let why = "the device tells no more";
                    return Err(Failure::new(Kind::Network, &one_line(code, 64), &what, why)
                        .next(format!("copal device show {}", text(device, "name"))));
                }
                print(ctx, &event);
            }
        }
        // The server ends a stream after a quarter of an hour; one that ends sooner is not asked for in a circle.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

fn print(ctx: &Context, point: &Value) {
    if ctx.out.json {
        return ctx.out.line(&point.to_string());
    }
    let line = |name: String, of: &Value| {
        let cells = row(name, of, point);
        let named = cells
            .iter()
            .zip(COLUMNS)
            .skip(1)
            .filter(|(cell, column)| !cell.is_empty() && *column != "cpu most");
        let words: Vec<String> = named.map(|(cell, column)| format!("{column} {cell}")).collect();
        ctx.out.line(&format!("{:<20} {}", cells[0], words.join("  ")));
    };
    line(when(&point["at"]), &point["device"]);
    for (name, of) in point["services"].as_object().into_iter().flatten() {
        line(format!("  {}", one_line(name, 18)), of);
    }
}

/// What a device has, for people.
pub(super) fn facts(device: &Value, now: u64) -> String {
    let facts = &device["facts"];
    if !facts.is_object() {
        return String::new();
    }
    let clock = match (facts["clock_set"].as_bool(), facts["clock_synchronised"].as_bool()) {
        (Some(false), _) => "not set".to_owned(),
        (_, Some(true)) => format!("synchronised ({})", text(facts, "clock_source")),
        (_, Some(false)) => format!("not synchronised ({})", text(facts, "clock_source")),
        _ => String::new(),
    };
    let booted = match (ago(&facts["booted_at"], now), text(facts, "boot_reason")) {
        (at, reason) if reason.is_empty() => at,
        (at, reason) => format!("{at} ({reason})"),
    };
    let amount = |field: &str| facts[field].as_u64().filter(|n| *n > 0).map(bytes).unwrap_or_default();
    let budget = &facts["budget"];
    let budget = match (budget["used"].as_u64(), budget["max_bytes_month"].as_u64()) {
        (Some(used), Some(max)) => {
            let left_out = match text(budget, "sheds").as_str() {
                _ if budget["no_channel"] == true => {
                    "; too small for a channel: it asks every few hours".to_owned()
                }
                "polls" => "; no channel for now: it asks every few hours".to_owned(),
                "nothing" => String::new(),
                other => format!("; left out: {other}"),
            };
            format!("{} of {} a month{left_out}", bytes(used), bytes(max))
        }
        _ => String::new(),
    };
    let mut out = String::from("\n");
    out.push_str(&pairs(&[
        ("booted", booted),
        ("clock", clock),
        ("kernel", text(facts, "kernel")),
        ("cores", scalar(&facts["cores"])),
        ("memory", amount("memory")),
        ("disk", amount("disk")),
        ("proxy", text(facts, "proxy")),
        ("budget", budget),
    ]));
    let rows: Vec<Vec<String>> = facts["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|i| {
            let addresses: Vec<String> =
                i["addresses"].as_array().into_iter().flatten().map(scalar).collect();
            let signal = i["signal"].as_i64().map(|s| format!("{s} %")).unwrap_or_default();
            let out = if i["routes"] == true { "the way out" } else { "" };
            vec![text(i, "name"), text(i, "state"), addresses.join(" "), out.to_owned(), signal]
        })
        .collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["interface", "state", "addresses", "", "signal"], rows.into_iter()));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_device_has_is_shown_and_nothing_where_it_told_nothing() {
        assert_eq!(facts(&json!({}), 0), "");
        let device = json!({"facts": {"kernel": "6.1", "cores": 4, "memory": 1_000_000_000, "clock_set": true,
            "clock_synchronised": true, "clock_source": "timedatectl", "boot_reason": "unclean", "booted_at": 1_000,
            "budget": {"max_bytes_month": 1000, "used": 900, "sheds": "telemetry"},
            "interfaces": [{"name": "eth0", "state": "up", "addresses": ["192.0.2.7"], "routes": true}]}});
        let shown = facts(&device, 4_600);
        for word in [
            "6.1",
            "synchronised (timedatectl)",
            "unclean",
            "left out: telemetry",
            "192.0.2.7",
            "the way out",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
    }

    #[test]
    fn a_span_is_a_line_of_rates_and_sizes() {
        let of = json!({"gauges": {"cpu": {"min": 0, "avg": 1500, "max": 2000, "last": 5}, "temperature": {"max": 51_540}},
            "counters": {"net_in": 36_000_000, "net_out": 0}});
        let cells = row("now".to_owned(), &of, &json!({"for_s": 3600}));
        assert_eq!((cells[1].as_str(), cells[2].as_str(), cells[7].as_str()), ("150 %", "200 %", "51 °C"));
        assert!(cells[6].contains("/s") && cells[3].is_empty(), "{cells:?}");
    }
}

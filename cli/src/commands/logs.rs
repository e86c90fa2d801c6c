//! Logs of a device, line by line. A line that breaks is taken up after the last number that was shown: nothing is lost and
//! nothing shown twice. What the device let go of is counted.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    time::{Duration, Instant},
};

use copal_protocol::logs::{LogLine, MAX_RECORD, Moment};
use futures_util::StreamExt as _;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::{
    args::Logs,
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{safe_lines, text, when},
};

/// The server says something every 15 s: after so long its line is dead.
const SILENCE: Duration = Duration::from_secs(50);
/// Tries that bring nothing, of a log that is not followed.
const TRIES: u32 = 5;
/// Between two tries, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

pub(super) async fn run(ctx: &Context, args: Logs) -> Result<()> {
    let api = ctx.api()?;
    let device = ctx.device(&api, &args.device).await?;
    let out: Box<dyn Write> = match &args.output {
        Some(path) => {
            let file =
                File::create(path).map_err(|e| Failure::local(format!("write {}", path.display()), e))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(std::io::stdout()),
    };
    let path =
        format!("/fleets/{}/devices/{}/logs", seg(&text(&device, "fleet")), seg(&text(&device, "device_id")));
    let what = format!("read the logs of device {}", text(&device, "name"));
    let some = args.search.is_some() || args.since.is_some() || args.until.is_some();
    let shown = Shown::new(args.since_seq, some, ctx.out.json);
    let mut reading = Reading { ctx, api: &api, args: &args, path, what, shown, out, began: Instant::now() };
    let done = reading.all().await;
    let flushed = reading.out.flush();
    if let (Ok(()), Some(path)) = (&done, &args.output) {
        flushed.map_err(|e| Failure::local(format!("write {}", path.display()), e))?;
        ctx.out.remark(format!("{} lines in {}", reading.shown.count, path.display()));
    }
    done
}

struct Reading<'a> {
    ctx: &'a Context,
    api: &'a Api,
    args: &'a Logs,
    path: String,
    what: String,
    shown: Shown,
    out: Box<dyn Write>,
    began: Instant,
}

/// How one answer of the server ended.
enum End {
    /// All was said.
    Whole,
    /// The server wants the credentials again.
    Renew,
    /// It broke, and may be taken up.
    Broke(Failure),
    /// Whoever read this went away.
    Closed,
}

impl Reading<'_> {
    async fn all(&mut self) -> Result<()> {
        let mut wait = AGAIN.0;
        let mut begun = false;
        let mut vain = 0;
        loop {
            let count = self.shown.count;
            let end = match self.ask().await {
                Ok(response) => {
                    begun = true;
                    self.read(response).await?
                }
                // What never worked is told at once.
                Err(failure) if begun && passes(&failure) => End::Broke(failure),
                Err(failure) => return Err(failure),
            };
            if self.shown.count > count {
                (wait, vain) = (AGAIN.0, 0);
            }
            match end {
                End::Whole | End::Closed => return Ok(()),
                End::Renew => {}
                End::Broke(failure) if vain >= TRIES && !self.args.follow => return Err(failure),
                End::Broke(failure) => {
                    vain += 1;
                    let after = self.shown.after.map(|seq| format!(" after {seq}")).unwrap_or_default();
                    self.ctx.out.remark(format!(
                        "{}; going on{after} in {} s …",
                        failure.why,
                        wait.as_secs()
                    ));
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AGAIN.1);
                }
            }
        }
    }

    async fn ask(&self) -> Result<Response> {
        let mut query = format!("?follow={}", self.args.follow);
        match (self.shown.after, self.args.tail) {
            (Some(after), _) => query.push_str(&format!("&after={after}")),
            (None, Some(tail)) => query.push_str(&format!("&tail={tail}")),
            (None, None) => {}
        }
        // Where it is asked for again, what was meant at first.
        let since_then = self.began.elapsed().as_secs();
        for (name, moment) in [("since", self.args.since), ("until", self.args.until)] {
            match moment.map(|moment| moment.later(since_then)) {
                Some(Moment::AgoS(ago)) => query.push_str(&format!("&{name}={ago}s")),
                Some(Moment::At(at)) => query.push_str(&format!("&{name}={}", seg(&when(&json!(at))))),
                None => {}
            }
        }
        if !self.args.service.is_empty() {
            query.push_str(&format!("&service={}", seg(&self.args.service.join(","))));
        }
        if let Some(search) = &self.args.search {
            query.push_str(&format!("&search={}&match_case={}", seg(search), self.args.match_case));
        }
        let request = self.api.request(Method::GET, &format!("{}{query}", self.path));
        let asked = tokio::time::timeout(SILENCE, self.api.send(&self.what, request)).await;
        let late = || Failure::new(Kind::Timeout, "timeout", &self.what, "the server did not answer in time");
        let answer = asked.unwrap_or_else(|_| Err(late()));
        answer.map_err(|failure| match failure.code.as_str() {
            "device_away" => failure.next("copal device show, for when it was last seen"),
            "not_supported" => failure.next("the agent there is too old for this: copal os deploy"),
            _ => failure,
        })
    }

    async fn read(&mut self, response: Response) -> Result<End> {
        let mut stream = response.bytes_stream();
        let mut rest = Vec::new();
        loop {
            let broke = |why: String| Ok(End::Broke(Failure::new(Kind::Network, "broken", &self.what, why)));
            let bytes = match tokio::time::timeout(SILENCE, stream.next()).await {
                Err(_) => return broke("the server fell silent".to_owned()),
                Ok(Some(Err(error))) => return Ok(End::Broke(self.api.transport(&self.what, &error))),
                Ok(Some(Ok(bytes))) => bytes,
                // A log that is followed has no end of its own.
                Ok(None) if self.args.follow => return broke("the log ended".to_owned()),
                Ok(None) => return Ok(End::Whole),
            };
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = line.trim_ascii();
                if line.is_empty() {
                    continue;
                }
                let said = match serde_json::from_slice::<LogLine>(line) {
                    Ok(line) => self.shown.take(&line),
                    Err(_) => return self.ended(line),
                };
                if said.iter().any(|said| writeln!(self.out, "{said}").is_err()) {
                    // A closed pipe (`| head`) is no error; a full disk is.
                    let why = "it cannot be written";
                    return if self.args.output.is_some() {
                        Err(Failure::local(&self.what, why))
                    } else {
                        Ok(End::Closed)
                    };
                }
            }
            if rest.len() > MAX_RECORD {
                return Err(self.not_understood());
            }
            let _ = self.out.flush();
        }
    }

    fn ended(&self, line: &[u8]) -> Result<End> {
        let value: Value = serde_json::from_slice(line).map_err(|_| self.not_understood())?;
        let (code, message) = (text(&value["end"], "code"), text(&value["end"], "message"));
        let why = if message.is_empty() { format!("it ended: {code}") } else { message };
        let failure = Failure::new(Kind::Network, &code, &self.what, why);
        match code.as_str() {
            "" => Err(self.not_understood()),
            "renew" => Ok(End::Renew),
            "restarting" => Ok(End::Broke(failure)),
            "device_away" if self.args.follow => Ok(End::Broke(failure)),
            _ => Err(failure),
        }
    }

    fn not_understood(&self) -> Failure {
        let why = "the server answered something that is no log";
        Failure::new(Kind::Network, "answer_not_understood", &self.what, why)
    }
}

/// Whether it may go better the next time.
fn passes(failure: &Failure) -> bool {
    matches!(failure.kind, Kind::Network | Kind::Timeout)
        || matches!(
            failure.code.as_str(),
            "device_away" | "no_websocket" | "not_supported" | "too_many_streams"
        )
}

/// What was shown.
struct Shown {
    /// The last number.
    after: Option<u64>,
    count: u64,
    /// The last of each service's own numbers.
    last: BTreeMap<String, u64>,
    /// Lines are left out on purpose.
    search: bool,
    json: bool,
}

impl Shown {
    fn new(after: Option<u64>, search: bool, json: bool) -> Self {
        Self { after, count: 0, last: BTreeMap::new(), search, json }
    }

    /// What to print for a line; nothing where it was had already.
    fn take(&mut self, line: &LogLine) -> Vec<String> {
        if self.after.is_some_and(|after| line.seq <= after) {
            return Vec::new();
        }
        self.after = Some(line.seq);
        self.count += 1;
        let mut said = Vec::new();
        let last = self.last.insert(line.service.clone(), line.n);
        // Numbers begin anew where a device lost its logs.
        let gap = last.filter(|_| !self.search).and_then(|last| line.n.checked_sub(last + 1)).unwrap_or(0);
        let (service, at) = (&line.service, &line.at);
        if gap > 0 && self.json {
            said.push(json!({ "gap": { "service": service, "lines": gap, "before": line.seq } }).to_string());
        } else if gap > 0 {
            said.push(format!("-- {}: {gap} lines are not on the device any more", safe_lines(service)));
        }
        if self.json {
            said.extend(serde_json::to_string(line).ok());
            return said;
        }
        let at = at.get(..23).unwrap_or(at).replace('T', " ");
        said.push(safe_lines(&match (&line.line, line.dropped) {
            (Some(text), _) => {
                let text = text.replace('\n', " ");
                let cut = if line.cut { " … (cut)" } else { "" };
                format!("{at} {service} | {text}{cut}")
            }
            (None, dropped) => {
                format!(
                    "-- {service}: {} lines were more than its rate, and were not kept",
                    dropped.unwrap_or(0)
                )
            }
        }));
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: u64, n: u64, text: &str) -> LogLine {
        LogLine {
            seq,
            n,
            service: "web".to_owned(),
            at: "2026-01-02T03:04:05.678900006Z".to_owned(),
            container: "0123456789ab".to_owned(),
            stderr: false,
            cut: false,
            line: Some(text.to_owned()),
            dropped: None,
        }
    }

    #[test]
    fn a_line_is_shown_once_and_what_is_missing_is_counted() {
        let mut shown = Shown::new(None, false, false);
        assert_eq!(shown.take(&line(7, 1, "one")), ["2026-01-02 03:04:05.678 web | one"]);
        assert!(shown.take(&line(7, 1, "one")).is_empty());
        assert_eq!(
            shown.take(&line(30, 5, "\u{1b}]0;x\u{7}t\u{1b}[31mwo\nfake")),
            ["-- web: 3 lines are not on the device any more", "2026-01-02 03:04:05.678 web | ]0;xtwo fake"]
        );
        let dropped = LogLine { line: None, dropped: Some(9), ..line(31, 6, "") };
        assert_eq!(shown.take(&dropped), ["-- web: 9 lines were more than its rate, and were not kept"]);
        assert_eq!(shown.take(&line(1_000_000, 1, "begun anew")).len(), 1);
        assert_eq!((shown.after, shown.count), (Some(1_000_000), 4));
    }

    #[test]
    fn programs_get_each_line_as_it_came_and_searches_count_no_gaps() {
        let mut shown = Shown::new(Some(3), true, true);
        assert!(shown.take(&line(3, 1, "had")).is_empty());
        assert_eq!(shown.take(&line(4, 2, "a")), [serde_json::to_string(&line(4, 2, "a")).unwrap()]);
        assert_eq!(shown.take(&line(9, 7, "b")).len(), 1);
        let mut shown = Shown::new(Some(3), false, true);
        shown.take(&line(4, 2, "a"));
        let said = shown.take(&LogLine { cut: true, ..line(9, 7, "b") });
        assert_eq!(said[0], r#"{"gap":{"before":9,"lines":4,"service":"web"}}"#);
    }
}

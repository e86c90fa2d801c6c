//! The audit log: listed, and checked without trust in the server that keeps it.

use copal_protocol::audit::{Chain, Row, Verdict};
use serde_json::json;

use crate::{
    args::AuditCommand,
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{short, text, when},
};

pub(super) async fn run(ctx: &Context, command: AuditCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        AuditCommand::List { limit } => {
            let items = api.some("list the audit log", "/audit", "", limit).await?;
            ctx.out.list(
                &items,
                &["id", "at", "who", "from", "verb", "object", "why", "detail", "hash"],
                |row| {
                    let detail =
                        if row["detail"].is_null() { String::new() } else { row["detail"].to_string() };
                    vec![
                        text(row, "id"),
                        when(&row["at"]),
                        text(row, "who"),
                        text(row, "from"),
                        text(row, "verb"),
                        text(row, "object"),
                        text(row, "why"),
                        detail,
                        short(&text(row, "hash")),
                    ]
                },
            );
            Ok(())
        }
        AuditCommand::Verify { since } => verify(ctx, &api, since.as_deref()).await,
    }
}

async fn verify(ctx: &Context, api: &Api, since: Option<&str>) -> Result<()> {
    let what = "verify the audit log";
    if since.is_some_and(|hash| hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(Failure::usage(
            what,
            "a hash of the log has 64 hex digits: the whole one that `verify` printed",
        ));
    }
    let verdict = read(api, what, since).await?;
    if let Some(broken) = &verdict.broken {
        let why = format!("it was changed by other hands than the server's: {broken}");
        return Err(Failure::trust("audit_broken", what, why)
            .next("compare with a back-up; on the server: copal-cloud audit verify"));
    }
    if let (Some(hash), None) = (since, verdict.since) {
        let why = format!(
            "its {} rows fit together, but none has the hash {hash}: it was cut off, written anew, or is another server's",
            verdict.rows
        );
        return Err(Failure::trust("audit_rewritten", what, why)
            .next("after a restore it ends where the back-up did; else compare with a back-up"));
    }
    let (id, hash) = verdict.head.clone().unzip();
    let value = json!({ "rows": verdict.rows, "head": hash, "head_id": id, "since_id": verdict.since });
    ctx.out.result(&value, || match (&id, &hash) {
        (Some(id), Some(hash)) => {
            let held = verdict
                .since
                .map(|id| format!(", and the hash given is that of row {id}"))
                .unwrap_or_default();
            format!("{} rows, unbroken{held}; the newest is row {id}\n{hash}", verdict.rows)
        }
        _ => "no row yet".to_owned(),
    });
    if let Some(hash) = &hash {
        ctx.out.remark(format!(
            "note this hash where the server cannot write; later: copal audit verify --since {hash}"
        ));
    }
    Ok(())
}

/// Reads the whole log, newest first, a page at a time.
async fn read(api: &Api, what: &str, since: Option<&str>) -> Result<Verdict> {
    let mut chain = Chain::since(since);
    let mut after = String::new();
    loop {
        let mut page = api.get(what, &format!("/audit?limit=500{after}")).await?;
        let rows: Vec<Row> = serde_json::from_value(page["items"].take()).map_err(|e| {
            Failure::new(
                Kind::Network,
                "answer_not_understood",
                what,
                format!("a page of the log cannot be read: {e}"),
            )
            .next("is the server older than this program? (copal version)")
        })?;
        let empty = rows.is_empty();
        for row in rows {
            // Ids fall from row to row, so that a server cannot keep us reading for ever.
            if !chain.older(row) {
                return Ok(chain.end());
            }
        }
        match page["next"].as_str() {
            Some(next) if !empty => after = format!("&after={}", seg(next)),
            _ => return Ok(chain.end()),
        }
    }
}

//! Who we are, what the server is, tokens.

use copal_protocol::keys::PublicKey;
use reqwest::Method;
use serde_json::json;

use crate::{
    args::TokenCommand,
    context::Context,
    failure::Result,
    http::seg,
    output::{ago, pairs, scalar, text, when},
};

pub(super) async fn whoami(ctx: &Context) -> Result<()> {
    let api = ctx.api()?;
    let mut me = api.get("show who you are", "/me").await?;
    me["server"] = json!(api.address());
    ctx.out.result(&me, || {
        pairs(&[("email", text(&me, "email")), ("role", text(&me, "role")), ("server", text(&me, "server"))])
    });
    Ok(())
}

pub(super) async fn server(ctx: &Context) -> Result<()> {
    let api = ctx.api()?;
    let mut server = api.get("show the server", "/server").await?;
    server["trusted_by_pins"] = json!(ctx.pins(&api.address())?);
    let list = |field: &str| {
        server[field].as_array().into_iter().flatten().map(scalar).collect::<Vec<_>>().join(", ")
    };
    // Worked out here: the server's word for it would prove nothing.
    let fingerprint = |field: &str| {
        let key = text(&server, field);
        key.parse::<PublicKey>().map_or_else(|_| key.clone(), |public| public.id().to_string())
    };
    ctx.out.result(&server, || {
        pairs(&[
            ("url", text(&server, "url")),
            ("version", text(&server, "version")),
            ("git", text(&server, "git_base")),
            ("builder key", fingerprint("builder_key")),
            ("assign key", fingerprint("assign_key")),
            ("its pins", list("tls_pins")),
            (
                "trusted by",
                Some(list("trusted_by_pins")).filter(|p| !p.is_empty()).unwrap_or("public CA".to_owned()),
            ),
        ])
    });
    Ok(())
}

pub(super) async fn version(ctx: &Context) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let server = match ctx.api() {
        Ok(api) => api.get("ask the server's version", "/server").await.map(|s| text(&s, "version")).ok(),
        Err(_) => None,
    };
    ctx.out.result(&json!({ "copal": own, "server": server }), || {
        let server = server.clone().unwrap_or_else(|| "not reached".to_owned());
        pairs(&[("copal", own.to_owned()), ("server", server)])
    });
    Ok(())
}

pub(super) async fn tokens(ctx: &Context, command: TokenCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        TokenCommand::Create { name, scope, for_fleet, expires } => {
            let mut body = json!({ "name": name, "scope": scope.as_str() });
            if let Some(fleet) = for_fleet {
                body["fleet"] = json!(fleet);
            }
            if let Some(seconds) = expires {
                body["expires_in_s"] = json!(seconds);
            }
            let what = format!("make the token {name}");
            let made = api.call(&what, Method::POST, "/tokens", Some(&body)).await;
            let made = made.map_err(|e| e.not_found_next("copal fleet list"))?;
            ctx.out.remark("shown once; keep it safe");
            ctx.out.result(&made, || text(&made, "token"));
        }
        TokenCommand::List => {
            let items = api.all("list the tokens", "/tokens", "").await?;
            ctx.out.list(&items, &["id", "name", "scope", "fleet", "created", "last used", "expires"], |t| {
                vec![
                    text(t, "id"),
                    text(t, "name"),
                    text(t, "scope"),
                    text(t, "fleet"),
                    ago(&t["created_at"], ctx.now),
                    ago(&t["last_used_at"], ctx.now),
                    when(&t["expires_at"]),
                ]
            });
        }
        TokenCommand::Revoke { token } => {
            let what = format!("revoke the token {token}");
            let revoked = api.call(&what, Method::DELETE, &format!("/tokens/{}", seg(&token)), None).await;
            revoked.map_err(|e| e.not_found_next("copal token list"))?;
            ctx.out.result(&json!({ "id": token, "revoked": true }), || format!("revoked {token}"));
        }
    }
    Ok(())
}

//! Who may do what: users of the server, and what they are on single fleets.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    args::{MemberCommand, UserCommand},
    context::{Context, read_secret},
    failure::{Failure, Result},
    http::{Api, seg},
    output::{ago, text, when},
};

pub(super) async fn users(ctx: &Context, command: UserCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        UserCommand::List => {
            let items = api.all("list the users", "/users", "").await?;
            ctx.out.list(&items, &["email", "role", "since", "shut out"], |u| {
                vec![
                    text(u, "email"),
                    text(u, "role"),
                    ago(&u["created_at"], ctx.now),
                    when(&u["disabled_at"]),
                ]
            });
        }
        UserCommand::Create { email, role } => {
            let what = format!("make the user {email}");
            let password = read_secret("password")?;
            let body = json!({ "email": email, "password": *password, "role": role.as_str() });
            let made = api.call(&what, Method::POST, "/users", Some(&body)).await?;
            ctx.out.remark("the person signs in with this password, and may change it");
            ctx.out.result(&made, || {
                format!("{} is {} of this server", text(&made, "email"), text(&made, "role"))
            });
        }
        UserCommand::Change { email, role, disable, enable } => {
            let what = format!("change the user {email}");
            let id = user_id(&api, &what, &email).await?;
            let mut body = json!({});
            if let Some(role) = role {
                body["role"] = json!(role.as_str());
            }
            if disable || enable {
                body["disabled"] = json!(disable);
            }
            let user = api.call(&what, Method::PATCH, &format!("/users/{}", seg(&id)), Some(&body)).await?;
            ctx.out.result(&user, || {
                let out = if user["disabled_at"].is_null() { "" } else { ", shut out" };
                format!("{} is {} of this server{out}", text(&user, "email"), text(&user, "role"))
            });
        }
    }
    Ok(())
}

async fn user_id(api: &Api, what: &str, email: &str) -> Result<String> {
    let wanted = email.trim().to_lowercase();
    let items = api.all(what, "/users", "").await?;
    let found = items.iter().find(|u: &&Value| text(u, "email") == wanted).map(|u| text(u, "id"));
    found
        .ok_or_else(|| Failure::not_found(what, format!("there is no user {wanted}")).next("copal user list"))
}

pub(super) async fn members(ctx: &Context, command: MemberCommand) -> Result<()> {
    let api = ctx.api()?;
    let word = match &command {
        MemberCommand::List { slug } => slug.as_deref(),
        MemberCommand::Set { .. } | MemberCommand::Remove { .. } => None,
    };
    let slug = ctx.fleet(&api, word).await?.slug;
    let path = format!("/fleets/{}/members", seg(&slug));
    match command {
        MemberCommand::List { .. } => {
            let what = format!("list the members of fleet {slug}");
            let items = api.all(&what, &path, "").await?;
            ctx.out.list(&items, &["email", "role", "on the server", "since"], |m| {
                vec![
                    text(m, "email"),
                    text(m, "role"),
                    text(m, "server_role"),
                    ago(&m["created_at"], ctx.now),
                ]
            });
        }
        MemberCommand::Set { email, role } => {
            let what = format!("make {email} a member of fleet {slug}");
            let path = format!("{path}/{}", seg(&email));
            let body = json!({ "role": role.as_str() });
            let member = api.call(&what, Method::PUT, &path, Some(&body)).await?;
            ctx.out.result(&member, || {
                format!("{} is {} on {slug}", text(&member, "email"), text(&member, "role"))
            });
        }
        MemberCommand::Remove { email } => {
            let what = format!("take {email} out of fleet {slug}");
            let gone = api.call(&what, Method::DELETE, &format!("{path}/{}", seg(&email)), None).await;
            gone.map_err(|e| e.not_found_next("copal member list"))?;
            ctx.out.result(&json!({ "email": email, "fleet": slug, "removed": true }), || {
                format!("{email} is no member of {slug} any more")
            });
        }
    }
    Ok(())
}

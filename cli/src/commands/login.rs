//! Signing in: first whether the server is the right one, then who we are.

use std::io::IsTerminal as _;

use reqwest::{Method, Url, header};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    args::Login,
    context::{Context, read_secret},
    failure::{Failure, Result},
    home::config::Server,
    http::{Api, address, is_certificate_error, server_url},
    output::{pairs, text},
};

/// `copal login`.
///
/// # Errors
/// Where the server is not trusted, or does not accept us.
pub async fn login(ctx: &Context, args: Login) -> Result<()> {
    let url = server_url(&args.server)?;
    let server = address(&url);
    let what = format!("sign in to {server}");
    let mut pins = ctx.globals.pin.clone();
    if let Some(file) = &args.ca_file {
        pins.extend(pins_of_file(file)?);
    }
    if pins.is_empty() {
        pins = ctx.home.config()?.servers.get(&server).map(|known| known.pins.clone()).unwrap_or_default();
    }
    let (api, pins) = Box::pin(trusted(ctx, &what, &url, pins)).await?;

    let token = if let Some(token) = args.token {
        Zeroizing::new(token)
    } else if args.token_stdin {
        read_secret("API token")?
    } else if let Some(token) = ctx.globals.token.clone() {
        Zeroizing::new(token)
    } else if args.email.is_some() || std::io::stdin().is_terminal() {
        Box::pin(token_by_password(&api, &what, args.email, args.password_stdin)).await?
    } else {
        return Err(Failure::usage(what, "neither a token nor a terminal to ask at")
            .next("echo TOKEN | copal login URL --token-stdin"));
    };
    if token.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(Failure::usage(what, "the token has spaces or control characters in it"));
    }

    let me = api.with_token(Some(token.to_string())).get(&what, "/me").await?;
    let email = text(&me, "email");
    let mut config = ctx.home.config()?;
    config.current = Some(server.clone());
    config.servers.insert(
        server.clone(),
        Server { pins: pins.clone(), email: Some(email.clone()).filter(|e| !e.is_empty()) },
    );
    let mut credentials = ctx.home.credentials()?;
    credentials.insert(server.clone(), token.to_string());
    ctx.home.save_credentials(&credentials)?;
    ctx.home.save_config(&config)?;
    ctx.out.result(&json!({ "server": server, "email": email, "role": me["role"], "pins": pins }), || {
        pairs(&[
            ("signed in", format!("{email} ({})", text(&me, "role"))),
            ("server", server.clone()),
            ("trusted by", if pins.is_empty() { "public CA".to_owned() } else { pins.join(", ") }),
        ])
    });
    if ctx.home.key_paths(crate::home::keys::DEFAULT_SET)?.is_empty() {
        ctx.out.remark("next: copal keys init");
    }
    Ok(())
}

/// Makes sure of the server before anything is sent to it: by pins, by a public CA, or by asking the person.
async fn trusted(ctx: &Context, what: &str, url: &Url, pins: Vec<String>) -> Result<(Api, Vec<String>)> {
    let api = Api::new(url.clone(), &pins, None)?;
    if url.scheme() == "http" {
        return Ok((api, Vec::new()));
    }
    let first = api.request(Method::GET, "/server").timeout(std::time::Duration::from_secs(30)).send().await;
    let Err(error) = first else { return Ok((api, pins)) };
    if !is_certificate_error(&error) {
        return Err(api.transport(what, &error));
    }
    let clock = copal_tls::system_clock();
    let (config, probe) = copal_tls::probe_config(&clock).map_err(|e| Failure::local(what, e))?;
    // Fails by design: the probe accepts nobody.
    let _ = Api::with_tls(url.clone(), config, None)?.request(Method::GET, "/server").send().await;
    let shown: Vec<String> = probe.chain().iter().map(copal_tls::Certificate::pin).collect();
    let server = address(url);
    // The last of the chain outlives the server's own certificate: a private CA, where there is one.
    let Some(pin) = shown.last().cloned() else { return Err(api.transport(what, &error)) };
    if !pins.is_empty() {
        return Err(Failure::trust(
            "certificate_refused",
            what,
            format!(
                "{server} shows none of the pinned keys, or not for this name or time; it shows {}",
                shown.join(", ")
            ),
        )
        .next("if its key was changed on purpose, sign in with --pin and the new one"));
    }
    let why = format!("no public CA vouches for {server}; it shows the key {pin}");
    if !std::io::stdin().is_terminal() {
        return Err(Failure::trust("certificate_refused", what, why).next(format!(
            "compare it with what `copal-cloud tls init` printed, then: copal login {server} --pin {pin}"
        )));
    }
    eprintln!("{why}.\nCompare it with what the server printed when it was set up.");
    ctx.confirm("Trust this key from now on?")?;
    let pins = vec![pin];
    let api = Api::new(url.clone(), &pins, None)?;
    api.request(Method::GET, "/server").send().await.map_err(|e| api.transport(what, &e))?;
    Ok((api, pins))
}

fn pins_of_file(file: &std::path::Path) -> Result<Vec<String>> {
    let what = format!("use the certificates of {}", file.display());
    let bytes = crate::home::read(file)?.ok_or_else(|| Failure::not_found(&what, "there is no such file"))?;
    let mut pins = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let der = certificate.map_err(|e| Failure::trust("certificate_invalid", &what, e))?;
        let certificate = copal_tls::Certificate::from_der(&der)
            .map_err(|e| Failure::trust("certificate_invalid", &what, e))?;
        pins.push(certificate.pin());
    }
    if pins.is_empty() {
        return Err(Failure::trust("certificate_invalid", what, "it holds no certificate in PEM"));
    }
    Ok(pins)
}

/// Signs in by password, makes a token of this machine's own, and ends the session again.
async fn token_by_password(
    api: &Api,
    what: &str,
    email: Option<String>,
    from_stdin: bool,
) -> Result<Zeroizing<String>> {
    let email = match email {
        Some(email) => email,
        None => {
            eprint!("email: ");
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(|e| Failure::local("read the email", e))?;
            line.trim().to_owned()
        }
    };
    if !from_stdin && !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage(what, "no terminal is there to ask for the password").next("add --password-stdin")
        );
    }
    let password = read_secret("password")?;
    let request =
        api.request(Method::POST, "/session").json(&json!({ "email": email, "password": *password }));
    let response = api.send(what, request).await?;
    let cookie = response
        .headers()
        .get_all(header::SET_COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok()?.split(';').next())
        .find(|pair| pair.contains("copal_session="))
        .map(str::to_owned)
        .ok_or_else(|| {
            Failure::new(crate::failure::Kind::Network, "answer_not_understood", what, "no session came back")
        })?;
    let name = format!("copal on {}", host_name());
    let with_session = |method, path: &str| {
        api.request(method, path).header(header::COOKIE, &cookie).header("X-Copal-CSRF", "1")
    };
    let made = with_session(Method::POST, "/tokens").json(&json!({ "name": name, "scope": "full" }));
    let made: Value = api.json(what, api.send(what, made).await?).await?;
    // The token is what stays; a session left behind would only be one thing more to steal.
    let _ = with_session(Method::DELETE, "/session").send().await;
    let token = text(&made, "token");
    if token.is_empty() {
        return Err(Failure::new(
            crate::failure::Kind::Network,
            "answer_not_understood",
            what,
            "no token came back",
        ));
    }
    Ok(Zeroizing::new(token))
}

/// This machine's name, for labels.
#[must_use]
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "this machine".to_owned())
}

/// `copal logout`.
///
/// # Errors
/// Where nothing was signed in to.
pub fn logout(ctx: &Context) -> Result<()> {
    let server = ctx.server()?;
    let mut credentials = ctx.home.credentials()?;
    let known = credentials.remove(&server).is_some();
    if known {
        ctx.home.save_credentials(&credentials)?;
    }
    ctx.out.result(&json!({ "server": server, "signed_out": known }), || {
        if known { format!("forgot the token of {server}") } else { format!("not signed in to {server}") }
    });
    if known {
        ctx.out.remark("the token itself stays good until it is revoked: copal token list");
    }
    Ok(())
}

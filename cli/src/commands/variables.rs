//! Variables. Secret values come from a terminal, standard input or a file, never from the command line.

use reqwest::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    args::{EnvCommand, EnvSet, Scope},
    context::{Context, one_value, read_secret},
    failure::{Failure, Result},
    http::{Api, seg},
    output::{ago, text},
};

pub(super) async fn run(ctx: &Context, command: EnvCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        EnvCommand::List { device } => {
            let path = path(ctx, &api, device.as_deref()).await?;
            let answer = api.get("list the variables", &path).await?;
            let items = answer["items"].as_array().or_else(|| answer.as_array()).cloned().unwrap_or_default();
            ctx.out.list(&items, &["name", "service", "value", "changed"], |v| {
                let value = if v["secret"] == true { "(secret)".to_owned() } else { text(v, "value") };
                vec![text(v, "name"), text(v, "service"), value, ago(&v["updated_at"], ctx.now)]
            });
            Ok(())
        }
        EnvCommand::Set(args) => set(ctx, &api, args).await,
        EnvCommand::Unset { name, scope } => {
            let path = path(ctx, &api, scope.device.as_deref()).await?;
            let service = scope.service.as_ref().map(|s| format!("&service={}", seg(s))).unwrap_or_default();
            let what = format!("unset {name}");
            api.call(&what, Method::DELETE, &format!("{path}?name={}{service}", seg(&name)), None).await?;
            ctx.out.result(&json!({ "name": name, "unset": true }), || format!("unset {name}"));
            Ok(())
        }
    }
}

async fn path(ctx: &Context, api: &Api, device: Option<&str>) -> Result<String> {
    Ok(match device {
        Some(word) => {
            format!("/devices/{}/variables", seg(&text(&ctx.device(api, word).await?, "device_id")))
        }
        None => format!("/fleets/{}/variables", seg(&ctx.fleet(api, None).await?.slug)),
    })
}

async fn set(ctx: &Context, api: &Api, args: EnvSet) -> Result<()> {
    let (name, value) = name_and_value(&args)?;
    let Scope { device, service } = &args.scope;
    let path = path(ctx, api, device.as_deref()).await?;
    let mut body = json!({ "name": name, "value": *value, "secret": args.secret });
    if let Some(service) = service {
        body["service"] = json!(service);
    }
    api.call(&format!("set {name}"), Method::PUT, &path, Some(&body)).await?;
    let done: Value = json!({ "name": name, "service": service, "secret": args.secret });
    ctx.out.result(&done, || format!("set {name}"));
    Ok(())
}

/// Where the value comes from. A secret on the command line is refused: it would show in the list of processes and
/// stay in the shell's history.
fn name_and_value(args: &EnvSet) -> Result<(String, Zeroizing<String>)> {
    let (name, inline) = match args.name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (args.name.as_str(), None),
    };
    let what = format!("set {name}");
    if inline.is_some() && (args.value.is_some() || args.value_file.is_some()) {
        return Err(Failure::usage(what, "the value is given twice"));
    }
    let given = inline.or(args.value.as_deref().filter(|value| *value != "-"));
    if args.secret && given.is_some() {
        return Err(Failure::usage(what, "a secret on the command line shows in the list of processes")
            .next(format!("copal env set {name} - --secret < file")));
    }
    if let Some(value) = given {
        return Ok((name.to_owned(), Zeroizing::new(value.to_owned())));
    }
    if let Some(file) = &args.value_file {
        let bytes = crate::home::read(file)?
            .ok_or_else(|| Failure::not_found(&what, format!("there is no file {}", file.display())))?;
        return Ok((name.to_owned(), one_value("value", &Zeroizing::new(bytes))?));
    }
    Ok((name.to_owned(), read_secret(&format!("value of {name}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: &str, value: Option<&str>, secret: bool) -> EnvSet {
        EnvSet {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            value_file: None,
            secret,
            scope: Scope { device: None, service: None },
        }
    }

    #[test]
    fn a_secret_is_not_taken_from_the_command_line() {
        assert!(name_and_value(&args("KEY=s", None, true)).is_err());
        assert!(name_and_value(&args("KEY", Some("s"), true)).is_err());
        let (name, value) = name_and_value(&args("KEY=a=b", None, false)).unwrap();
        assert_eq!((name.as_str(), value.as_str()), ("KEY", "a=b"));
        let (_, value) = name_and_value(&args("KEY", Some("v"), false)).unwrap();
        assert_eq!(value.as_str(), "v");
        assert!(name_and_value(&args("KEY=a", Some("b"), false)).is_err());
    }
}

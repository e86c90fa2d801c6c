//! Fetches a device's support bundle into a file: whole or not at all.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use reqwest::Method;
use serde_json::json;

use crate::{
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{bytes, text},
};

/// The most bytes of a bundle; the device's own bound is below.
const MOST: u64 = 32 << 20;

pub(super) async fn fetch(ctx: &Context, api: &Api, device: &str, out: &Path, force: bool) -> Result<()> {
    let found = ctx.device(api, device).await?;
    let name = text(&found, "name");
    let what = format!("fetch the support bundle of device {name}");
    if out.exists() && !force {
        return Err(Failure::usage(&what, format!("{} is there already", out.display())).next("add --force"));
    }
    let (fleet, id) = (text(&found, "fleet"), text(&found, "device_id"));
    let path = format!("/fleets/{}/devices/{}/support-bundle", seg(&fleet), seg(&id));
    ctx.out.remark("the device gathers it; this takes up to a minute …");
    let response =
        api.send(&what, api.request(Method::POST, &path)).await.map_err(|failure| {
            match failure.code.as_str() {
                "not_supported" => failure.next("the agent there is too old for this: copal os deploy"),
                "device_away" => failure.next(
                    "a bundle is made now or not at all: see when the device is back, copal device show",
                ),
                _ => failure,
            }
        })?;
    let part = Part::create(out).map_err(|e| Failure::local(&what, format!("{}: {e}", out.display())))?;
    let size = receive(&what, api, response, part, out).await?;
    let value = json!({ "device_id": id, "name": name, "file": out.display().to_string(), "size": size });
    ctx.out.result(&value, || {
        format!("{}: {}; look through it before you pass it on", out.display(), bytes(size))
    });
    Ok(())
}

async fn receive(
    what: &str,
    api: &Api,
    mut response: reqwest::Response,
    mut part: Part,
    out: &Path,
) -> Result<u64> {
    let mut size = 0_u64;
    let local = |e: std::io::Error| Failure::local(what, format!("{}: {e}", out.display()));
    while let Some(chunk) = response.chunk().await.map_err(|e| api.transport(what, &e))? {
        size += chunk.len() as u64;
        if size > MOST {
            return Err(Failure::new(
                Kind::Failure,
                "too_large",
                what,
                format!("it is larger than {}", bytes(MOST)),
            ));
        }
        part.file.write_all(&chunk).map_err(local)?;
    }
    part.finish(out).map_err(local)?;
    Ok(size)
}

/// A file that is not whole yet; gone when it does not become so.
struct Part {
    path: PathBuf,
    file: fs::File,
}

impl Part {
    /// For its owner alone: what is in it tells much of a device.
    fn create(out: &Path) -> std::io::Result<Self> {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = out.with_file_name(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    fn finish(self, out: &Path) -> std::io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, out)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After it became whole there is none of this name any more.
        let _ = fs::remove_file(&self.path);
    }
}

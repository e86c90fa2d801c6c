//! One handler a page. Each asks the API's handlers, with the rights of who is signed in.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::Response,
};
use serde::Deserialize;

use super::{Frame, Person, Refusal, filters, page, render, views};
use crate::{
    api::{self, Json, Paging, Path, fleets},
    app::App,
    auth::Caller,
    error::Problem,
};

type Page = Result<Response, Refusal>;

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Option<Frame>,
    url: String,
    totals: fleets::Totals,
    fleets: Vec<fleets::Fleet>,
}

pub(super) async fn overview(State(app): State<App>, Person(caller): Person) -> Page {
    let paging = api::Query(Paging::new(Some(500), None));
    let Json(list) = fleets::list(State(app.clone()), caller.clone(), paging).await?;
    let mut totals = fleets::Totals::default();
    for fleet in &list.items {
        totals.total += fleet.devices.total;
        totals.online += fleet.devices.online;
        totals.on_target += fleet.devices.on_target;
        totals.failed += fleet.devices.failed;
    }
    let frame = Frame::new(&caller, "overview", None);
    Ok(page(&Overview { frame, url: app.config.url.clone(), totals, fleets: list.items }))
}

#[derive(Template)]
#[template(path = "fleet.html")]
struct Fleet {
    frame: Option<Frame>,
    fleet: fleets::Fleet,
    devices: Vec<views::Device>,
    builds: Vec<views::Build>,
}

/// How much of a longer list the fleet's page shows.
const GLANCE: u32 = 10;

pub(super) async fn fleet(State(app): State<App>, Person(caller): Person, Path(slug): Path<String>) -> Page {
    let Json(fleet) = fleets::show(State(app.clone()), caller.clone(), Path(slug.clone())).await?;
    let first = vec![("limit".to_owned(), GLANCE.to_string())];
    let Json(devices) =
        api::devices::list(State(app.clone()), caller.clone(), Path(slug.clone()), api::Query(first)).await?;
    let paging = api::Query(Paging::new(Some(GLANCE), None));
    let Json(builds) = api::builds::list(State(app), caller.clone(), Path(slug.clone()), paging).await?;
    Ok(page(&Fleet {
        frame: Frame::new(&caller, "fleet", Some(&slug)),
        fleet,
        devices: devices.items.into_iter().map(Into::into).collect(),
        builds: builds.items.into_iter().map(Into::into).collect(),
    }))
}

#[derive(Template)]
#[template(path = "devices.html")]
struct Devices {
    frame: Option<Frame>,
    slug: String,
    filter: String,
    /// What is wrong with the filter, with a mark under the place.
    wrong: Option<String>,
    devices: Vec<views::Device>,
    next: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DeviceFilter {
    filter: String,
    after: Option<String>,
}

pub(super) async fn devices(
    State(app): State<App>,
    Person(caller): Person,
    Path(slug): Path<String>,
    Query(asked): Query<DeviceFilter>,
) -> Page {
    let filter = asked.filter.trim().to_owned();
    let read = if filter.is_empty() { None } else { filter.parse::<copal_filter::Filter>().err() };
    let wrong = read.map(|error| error.pointed(&filter));
    let mut shown = Devices {
        frame: Frame::new(&caller, "devices", Some(&slug)),
        slug,
        filter,
        wrong,
        devices: Vec::new(),
        next: None,
    };
    if shown.wrong.is_some() {
        // Whose fleet it is comes first: who may not look is told nothing else.
        fleets::show(State(app), caller, Path(shown.slug.clone())).await?;
        return Ok(render(StatusCode::BAD_REQUEST, &shown));
    }
    let mut pairs = vec![("limit".to_owned(), "100".to_owned()), ("filter".to_owned(), shown.filter.clone())];
    pairs.extend(asked.after.map(|after| ("after".to_owned(), after)));
    let Json(found) =
        api::devices::list(State(app), caller, Path(shown.slug.clone()), api::Query(pairs)).await?;
    let here = format!("/fleets/{}/devices", shown.slug);
    shown.next = found.next.map(|after| link(&here, &[("filter", &shown.filter), ("after", &after)]));
    shown.devices = found.items.into_iter().map(Into::into).collect();
    Ok(page(&shown))
}

#[derive(Template)]
#[template(path = "device.html")]
struct Device {
    frame: Option<Frame>,
    device: views::Device,
    services: Vec<views::Service>,
    events: Vec<views::Event>,
}

pub(super) async fn device(State(app): State<App>, Person(caller): Person, Path(id): Path<String>) -> Page {
    let Json(found) = api::devices::show(State(app.clone()), caller.clone(), Path(id.clone())).await?;
    let paging = api::Query(Paging::new(Some(50), None));
    let Json(events) = api::devices::events(State(app), caller.clone(), Path(id), paging).await?;
    Ok(page(&Device {
        frame: Frame::new(&caller, "devices", Some(&found.fleet)),
        services: views::services(&found),
        events: events.items.into_iter().map(Into::into).collect(),
        device: found.into(),
    }))
}

#[derive(Template)]
#[template(path = "releases.html")]
struct Releases {
    frame: Option<Frame>,
    slug: String,
    releases: Vec<views::Release>,
    next: Option<String>,
}

pub(super) async fn releases(
    State(app): State<App>,
    Person(caller): Person,
    Path(slug): Path<String>,
    Query(filter): Query<DeviceFilter>,
) -> Page {
    let paging = api::Query(Paging::new(Some(50), filter.after));
    let Json(found) = api::releases::list(State(app), caller.clone(), Path(slug.clone()), paging).await?;
    let here = format!("/fleets/{slug}/releases");
    Ok(page(&Releases {
        frame: Frame::new(&caller, "releases", Some(&slug)),
        releases: found.items.into_iter().map(Into::into).collect(),
        next: found.next.map(|after| link(&here, &[("after", &after)])),
        slug,
    }))
}

#[derive(Template)]
#[template(path = "systems.html")]
struct Systems {
    frame: Option<Frame>,
    slug: String,
    window: Option<String>,
    systems: Vec<views::System>,
    next: Option<String>,
}

pub(super) async fn systems(
    State(app): State<App>,
    Person(caller): Person,
    Path(slug): Path<String>,
    Query(filter): Query<DeviceFilter>,
) -> Page {
    let paging = api::Query(Paging::new(Some(50), filter.after));
    let Json(fleet) = fleets::show(State(app.clone()), caller.clone(), Path(slug.clone())).await?;
    let Json(found) =
        api::host_releases::list(State(app), caller.clone(), Path(slug.clone()), paging).await?;
    let here = format!("/fleets/{slug}/systems");
    Ok(page(&Systems {
        frame: Frame::new(&caller, "systems", Some(&slug)),
        window: fleet.reboot_window,
        systems: found.items.into_iter().map(Into::into).collect(),
        next: found.next.map(|after| link(&here, &[("after", &after)])),
        slug,
    }))
}

#[derive(Template)]
#[template(path = "release.html")]
struct Release {
    frame: Option<Frame>,
    release: views::Release,
}

pub(super) async fn release(State(app): State<App>, Person(caller): Person, Path(id): Path<String>) -> Page {
    let Json(found) = api::releases::show(State(app), caller.clone(), Path(id)).await?;
    let frame = Frame::new(&caller, "releases", Some(&found.fleet));
    Ok(page(&Release { frame, release: found.into() }))
}

#[derive(Template)]
#[template(path = "build.html")]
struct Build {
    frame: Option<Frame>,
    slug: String,
    build: views::Build,
    log: String,
}

pub(super) async fn build(State(app): State<App>, Person(caller): Person, Path(id): Path<String>) -> Page {
    let Json(found) = api::builds::show(State(app.clone()), caller.clone(), Path(id.clone())).await?;
    let log = last_of_log(app, caller.clone(), id).await?;
    let slug = found.fleet.clone();
    Ok(page(&Build { frame: Frame::new(&caller, "releases", Some(&slug)), slug, build: found.into(), log }))
}

/// How much of a log a page shows before its script follows the rest.
const LOG_SHOWN: usize = 64 << 10;

async fn last_of_log(app: App, caller: Caller, id: String) -> Result<String, Refusal> {
    let most = usize::try_from(app.config.build.log).unwrap_or(usize::MAX).saturating_add(1 << 20);
    let so_far = api::Query(api::builds::LogQuery { follow: false });
    let answer = api::builds::log(State(app), caller, Path(id), so_far).await?;
    let bytes = axum::body::to_bytes(answer.into_body(), most).await.map_err(Problem::internal)?;
    let from = bytes.len().saturating_sub(LOG_SHOWN);
    let shown = String::from_utf8_lossy(&bytes[from..]);
    Ok(if from == 0 {
        shown.into_owned()
    } else {
        format!("… {from} bytes before this are in the API\n{shown}")
    })
}

/// A link with those parameters that are not empty, percent-encoded.
fn link(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    let mut sign = '?';
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        out.push(sign);
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        sign = '&';
    }
    out
}

#[cfg(test)]
mod tests {
    use super::link;

    #[test]
    fn links_carry_whatever_was_asked_for() {
        assert_eq!(link("/x", &[("tag", ""), ("after", "a1")]), "/x?after=a1");
        assert_eq!(link("/x", &[("tag", "a=b&c"), ("after", "é")]), "/x?tag=a%3Db%26c&after=%C3%A9");
    }
}

//! Pages for people: rendered here, readable without JavaScript, kept live by one small script.
//!
//! In: requests of a signed-in person. Out: HTML under a strict content policy. The pages ask the handlers of `api`
//! as any client would, so that what is on a page is in the API, with the same rights.
//! Never here: SQL, decisions, inline script or style, anything from outside shown unescaped.
//!
//! | file | what it holds |
//! |---|---|
//! | `pages` | one handler a page |
//! | `sign_in` | signing in and out, the first administrator |
//! | `views` | what templates show, made from the API's own types |
//! | `filters` | how ids, sizes, times and foreign text are written |
//! | `assets/` | style sheet, script, icon; embedded |
//! | `../../templates` | the templates |

mod filters;
mod pages;
mod sign_in;
#[cfg(test)]
mod tests;
mod views;

use askama::Template;
use axum::{
    Router,
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};

use crate::{app::App, auth::Caller, error::Problem};

/// What a page may do: its own style, script and images, nothing inline, nothing foreign, in nobody's frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The pages and what they load.
pub fn router() -> Router<App> {
    Router::new()
        .route("/", get(pages::overview))
        .route("/fleets/{slug}", get(pages::fleet))
        .route("/fleets/{slug}/devices", get(pages::devices))
        .route("/fleets/{slug}/releases", get(pages::releases))
        .route("/fleets/{slug}/systems", get(pages::systems))
        .route("/devices/{id}", get(pages::device))
        .route("/releases/{id}", get(pages::release))
        .route("/builds/{id}", get(pages::build))
        .merge(sign_in::router())
        .route(
            "/assets/style.css",
            get(|| asset("text/css; charset=utf-8", include_str!("assets/style.css"))),
        )
        .route(
            "/assets/live.js",
            get(|| asset("text/javascript; charset=utf-8", include_str!("assets/live.js"))),
        )
        .route("/assets/icon.svg", get(|| asset("image/svg+xml", include_str!("assets/icon.svg"))))
}

async fn asset(kind: &'static str, body: &'static str) -> Response {
    let mut response = ([(header::CONTENT_TYPE, kind)], body).into_response();
    // A new binary may bring new assets under the same name.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}

/// What surrounds a page of a signed-in person.
#[derive(Debug, Clone)]
struct Frame {
    /// Who is signed in.
    who: String,
    /// Which entry of the navigation is this.
    page: &'static str,
    /// The fleet the page is about.
    fleet: Option<String>,
    /// Where its changes are told.
    events: String,
}

impl Frame {
    fn new(caller: &Caller, page: &'static str, fleet: Option<&str>) -> Option<Self> {
        let events =
            fleet.map_or_else(|| "/api/v1/events".to_owned(), |f| format!("/api/v1/events?fleet={f}"));
        Some(Self { who: caller.email.clone(), page, fleet: fleet.map(str::to_owned), events })
    }
}

fn render(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => {
            let mut response = (status, Html(html)).into_response();
            let policy = HeaderValue::from_static(POLICY);
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            // Under `no-referrer` a browser hides the Origin of this server's own forms too, and they would be refused.
            headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
            response
        }
        Err(error) => Problem::internal(format!("rendering a page: {error}")).into_response(),
    }
}

fn page(template: &impl Template) -> Response {
    render(StatusCode::OK, template)
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage {
    frame: Option<Frame>,
    title: String,
    detail: String,
    code: &'static str,
}

/// Who is signed in. Who is not is shown the way.
struct Person(Caller);

impl FromRequestParts<App> for Person {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        Ok(Self(Caller::from_request_parts(parts, app).await?))
    }
}

/// A refusal as a page. Who is not signed in is shown the way.
#[derive(Debug)]
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.0;
        if problem.status() == StatusCode::UNAUTHORIZED {
            return Redirect::to("/sign-in").into_response();
        }
        let title = match problem.status() {
            StatusCode::NOT_FOUND => "Not found",
            StatusCode::FORBIDDEN => "Not allowed",
            _ => "That did not work",
        };
        let page = ProblemPage {
            frame: None,
            title: title.to_owned(),
            detail: problem.detail().to_owned(),
            code: problem.code(),
        };
        render(problem.status(), &page)
    }
}

//! Signing in and out, and the first administrator, by plain forms. A form cannot send the header that other writes
//! under the session need, so what tells a foreign page here is `Origin` and `Sec-Fetch-Site`.

use askama::Template;
use axum::{
    Form, Router,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;

use super::{Frame, Refusal, page, render};
use crate::{
    api::{Json, session, setup},
    app::App,
    auth::{self, Caller},
    error::Problem,
};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/sign-in", get(form).post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/setup", get(setup_form).post(make_first))
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    frame: Option<Frame>,
    refusal: Option<String>,
    email: String,
}

#[derive(Template)]
#[template(path = "setup.html")]
struct SetupPage {
    frame: Option<Frame>,
    refusal: Option<String>,
    email: String,
    token: String,
}

async fn form() -> Response {
    page(&SignInPage { frame: None, refusal: None, email: String::new() })
}

#[derive(Deserialize)]
struct SignIn {
    email: String,
    password: String,
}

async fn sign_in(
    State(app): State<App>,
    headers: HeaderMap,
    Form(asked): Form<SignIn>,
) -> Result<Response, Refusal> {
    auth::own_page(&headers, &app.config.url)?;
    let email = asked.email.clone();
    let body = Json(session::SignIn { email: asked.email, password: asked.password });
    match session::sign_in(State(app), headers, body).await {
        Ok(answer) => Ok(with_cookie(&answer.into_response(), "/")),
        Err(problem) => {
            let status = problem.status();
            let refusal = Some(problem.detail().to_owned());
            Ok(render(status, &SignInPage { frame: None, refusal, email }))
        }
    }
}

async fn sign_out(State(app): State<App>, mut headers: HeaderMap) -> Result<Response, Refusal> {
    auth::own_page(&headers, &app.config.url)?;
    let Some(session) = auth::sessions::cookie(&app, &headers).map(str::to_owned) else {
        return Ok(Redirect::to("/sign-in").into_response());
    };
    headers.remove(header::AUTHORIZATION);
    let caller: Result<Caller, Problem> =
        auth::sessions::caller(&app, &session, auth::source(&headers)).await;
    match caller {
        Ok(caller) => {
            let answer = session::sign_out(State(app), caller, headers).await?;
            Ok(with_cookie(&answer.into_response(), "/sign-in"))
        }
        Err(_) => Ok(Redirect::to("/sign-in").into_response()),
    }
}

#[derive(Deserialize)]
struct Link {
    #[serde(default)]
    token: String,
}

async fn setup_form(Query(link): Query<Link>) -> Response {
    page(&SetupPage { frame: None, refusal: None, email: String::new(), token: link.token })
}

#[derive(Deserialize)]
struct First {
    token: String,
    email: String,
    password: String,
}

async fn make_first(
    State(app): State<App>,
    headers: HeaderMap,
    Form(asked): Form<First>,
) -> Result<Response, Refusal> {
    auth::own_page(&headers, &app.config.url)?;
    let (email, token) = (asked.email.clone(), asked.token.clone());
    let body = Json(setup::Setup { token: asked.token, email: asked.email, password: asked.password });
    match setup::setup(State(app), headers, body).await {
        Ok(answer) => Ok(with_cookie(&answer.into_response(), "/")),
        Err(problem) => {
            let status = problem.status();
            let refusal = Some(problem.detail().to_owned());
            Ok(render(status, &SetupPage { frame: None, refusal, email, token }))
        }
    }
}

/// Goes to a page with the cookies the API set.
fn with_cookie(answer: &Response, to: &'static str) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    for cookie in answer.headers().get_all(header::SET_COOKIE) {
        response.headers_mut().append(header::SET_COOKIE, cookie.clone());
    }
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(to));
    response
}

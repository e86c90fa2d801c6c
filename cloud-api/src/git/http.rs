//! Smart HTTP in front of `git upload-pack` and `git receive-pack`.

use std::{
    io::Read as _,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
};

use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout},
    sync::{mpsc, watch},
};

use super::{Push, listen, repo};
use crate::{
    app::App,
    auth::{self, Act, Caller},
    error::Problem,
    store::fleets::{self, FleetRow},
};

/// Bounds of a compressed request body, which is a list of commits and small.
const MAX_ZIPPED: usize = 8 << 20;
const MAX_UNZIPPED: u64 = 64 << 20;

/// How long a client may take to send what it pushes, and a fetch in all: a client that is slow on purpose must not
/// hold its place for ever.
const TRANSFER: std::time::Duration = std::time::Duration::from_secs(3600);

/// How long a client that fetches may read nothing.
const STALL: std::time::Duration = std::time::Duration::from_secs(60);

/// How much of git's output is under way to the client at a time.
const PIECES: usize = 16;
const PIECE: usize = 32 << 10;

/// A refusal as git shows it: text, as `remote: …` lines.
struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let text = format!("{} ({})\n", self.0.detail(), self.0.code());
        let mut response = (self.0.status(), text).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.0.status() == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(r#"Basic realm="Copal", charset="UTF-8""#),
            );
        }
        if self.0.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
        }
        response
    }
}

/// Who asks, for which fleet. The repository's name is a slug and `.git`, nothing else: no path is made from it.
async fn enter(app: &App, headers: &HeaderMap, name: &str, act: Act) -> Result<(Caller, FleetRow), Refusal> {
    let caller = auth::basic(app, headers).await?;
    let slug = name.strip_suffix(".git").unwrap_or(name);
    let fleet = fleets::by_slug(app, slug).await?;
    caller.may(act, Some(&fleet))?;
    Ok((caller, fleet))
}

fn no_cache(response: &mut Response) {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
}

/// The protocol version the client asks for, if it is one that git could have written.
fn protocol(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("git-protocol")?.to_str().ok()?;
    let plain = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"=:".contains(&b));
    plain.then_some(text)
}

pub(super) async fn info_refs(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    Box::pin(refs(&app, &name, query.as_deref().unwrap_or(""), &headers))
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

async fn refs(app: &App, name: &str, query: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
    let service = query.split('&').find_map(|pair| pair.strip_prefix("service=")).unwrap_or("");
    let (command, act) = match service {
        "git-upload-pack" => ("upload-pack", Act::Read),
        "git-receive-pack" => ("receive-pack", Act::Push),
        _ => {
            return Err(Problem::forbidden(
                "git_dumb",
                "Only git's smart HTTP protocol is spoken here; update git.",
            )
            .into());
        }
    };
    let (_, fleet) = enter(app, headers, name, act).await?;
    let repo = repo::open(app, fleet.fleet_id).await?;
    let mut git = repo::git(app, &repo, [command, "--stateless-rpc", "--http-backend-info-refs", "."]);
    if let Some(protocol) = protocol(headers) {
        git.env("GIT_PROTOCOL", protocol);
    }
    let out = repo::run(git).await?;
    let line = format!("# service={service}\n");
    let mut body = format!("{:04x}{line}0000", line.len() + 4).into_bytes();
    body.extend_from_slice(&out);
    let mut response = Response::new(Body::from(body));
    let kind =
        HeaderValue::try_from(format!("application/x-{service}-advertisement")).map_err(Problem::internal)?;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    no_cache(&mut response);
    Ok(response)
}

pub(super) async fn upload_pack(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    Box::pin(fetch(&app, &name, &headers, body)).await.unwrap_or_else(IntoResponse::into_response)
}

async fn fetch(app: &App, name: &str, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
    expect_type(headers, "application/x-git-upload-pack-request")?;
    let (_, fleet) = enter(app, headers, name, Act::Read).await?;
    let slot = app.git.fetch_slots.clone().try_acquire_owned().map_err(|_| busy())?;
    let repo = repo::open(app, fleet.fleet_id).await?;
    let mut git = repo::git(app, &repo, ["upload-pack", "--stateless-rpc", "."]);
    if let Some(protocol) = protocol(headers) {
        git.env("GIT_PROTOCOL", protocol);
    }
    let mut child = git.stdin(Stdio::piped()).kill_on_drop(true).spawn().map_err(Problem::internal)?;
    let input = request_body(headers, body).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let _slot = slot;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = drain_errors(&mut child);
        tokio::select! {
            ((), _) = async { tokio::join!(feed(stdin, input), pump(stdout, &sender, true)) } => {
                let _ = child.wait().await;
            }
            // The client left: nobody needs the rest.
            () = sender.closed() => {}
            () = tokio::time::sleep(TRANSFER) => {}
        }
        drop(stderr);
    });
    answer(receiver, "application/x-git-upload-pack-result").await
}

pub(super) async fn receive_pack(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    Box::pin(receive(&app, &name, &headers, body)).await.unwrap_or_else(IntoResponse::into_response)
}

async fn receive(app: &App, name: &str, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
    expect_type(headers, "application/x-git-receive-pack-request")?;
    let (caller, fleet) = enter(app, headers, name, Act::Push).await?;
    let slot = app.git.push_slots.clone().try_acquire_owned().map_err(|_| busy())?;
    let repo = repo::open(app, fleet.fleet_id).await?;
    let push = Arc::new(Push {
        id: format!("{}{}", new_id()?, new_id()?),
        caller,
        fleet,
        pre_seen: AtomicBool::new(false),
        post_seen: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        prepared: Mutex::default(),
        ended: watch::Sender::new(false),
    });
    let binary = match app.git.hook_binary.get() {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(Problem::internal)?,
    };
    let mut git = repo::git(app, &repo, ["receive-pack", "--stateless-rpc", "."]);
    git.env("COPAL_PUSH_ID", &push.id)
        .env("COPAL_HOOK_SOCKET", repo::socket(app))
        .env("COPAL_HOOK_BINARY", binary)
        .stdin(Stdio::piped());
    if let Some(protocol) = protocol(headers) {
        git.env("GIT_PROTOCOL", protocol);
    }
    let input = request_body(headers, body).await?;
    app.git.pushes.lock().unwrap_or_else(PoisonError::into_inner).insert(push.id.clone(), push.clone());
    let mut child = match git.spawn() {
        Ok(child) => child,
        Err(error) => {
            app.git.pushes.lock().unwrap_or_else(PoisonError::into_inner).remove(&push.id);
            return Err(Problem::internal(error).into());
        }
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let app = app.clone();
    // A task of its own: the push ends when git ends, whoever still listens.
    tokio::spawn(async move {
        let _slot = slot;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = drain_errors(&mut child);
        let watched = push.clone();
        let left = sender.clone();
        let watch = tokio::spawn(async move {
            left.closed().await;
            watched.gone.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        // When the time is over git sees an end in the middle, and refuses.
        let fed = tokio::time::timeout(TRANSFER, feed(stdin, input));
        let _ = tokio::join!(fed, pump(stdout, &sender, false));
        if let Err(error) = child.wait().await {
            tracing::error!(%error, "waiting for git receive-pack");
        }
        listen::settle(&app, &push).await;
        app.git.pushes.lock().unwrap_or_else(PoisonError::into_inner).remove(&push.id);
        push.ended.send_replace(true);
        watch.abort();
        drop(stderr);
    });
    answer(receiver, "application/x-git-receive-pack-result").await
}

fn new_id() -> Result<String, Problem> {
    crate::registry::random_id().map_err(Problem::internal)
}

fn busy() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "git_busy",
        "Too many pushes or fetches are under way; try again in half a minute.",
    )
}

fn expect_type(headers: &HeaderMap, want: &str) -> Result<(), Problem> {
    if headers.get(header::CONTENT_TYPE).is_some_and(|have| have.as_bytes() == want.as_bytes()) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "git_content_type",
        format!("The Content-Type must be {want}."),
    ))
}

/// What git reads: the body as it comes, or unpacked when the client compressed it.
enum Input {
    Stream(Body),
    Whole(Vec<u8>),
}

async fn request_body(headers: &HeaderMap, body: Body) -> Result<Input, Problem> {
    match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(Input::Stream(body)),
        Some(b"gzip" | b"x-gzip") => {
            let zipped = axum::body::to_bytes(body, MAX_ZIPPED).await.map_err(|_| too_large())?;
            let mut out = Vec::new();
            flate2::read::GzDecoder::new(&zipped[..])
                .take(MAX_UNZIPPED)
                .read_to_end(&mut out)
                .map_err(|_| Problem::bad_request("git_gzip", "The body is not gzip, though it says so."))?;
            if out.len() as u64 == MAX_UNZIPPED {
                return Err(too_large());
            }
            Ok(Input::Whole(out))
        }
        Some(_) => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "git_encoding",
            "Only gzip bodies are read.",
        )),
    }
}

fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The compressed body is too large.")
}

/// Gives git its input. When the client's body breaks off, git sees an end in the middle and refuses by itself.
async fn feed(stdin: Option<ChildStdin>, input: Input) {
    let Some(mut stdin) = stdin else { return };
    match input {
        Input::Whole(bytes) => {
            let _ = stdin.write_all(&bytes).await;
        }
        Input::Stream(body) => {
            let mut stream = body.into_data_stream();
            while let Some(Ok(bytes)) = stream.next().await {
                if stdin.write_all(&bytes).await.is_err() {
                    // Git has read what it wants (it refused early); the rest is read off so that the client, which
                    // first sends all, gets to the answer.
                    while let Some(Ok(_)) = stream.next().await {}
                    return;
                }
            }
        }
    }
    let _ = stdin.shutdown().await;
}

/// Hands git's output on, at once. A client that reads nothing for [`STALL`] has left as one that hung up has. Unless
/// `stop`, goes on reading when nobody listens: git must not die of it.
async fn pump(stdout: Option<ChildStdout>, sender: &mpsc::Sender<Bytes>, stop: bool) {
    let Some(mut stdout) = stdout else { return };
    let mut buffer = vec![0; PIECE];
    let mut listening = true;
    loop {
        let n = match stdout.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        if listening {
            let sent = sender.send(Bytes::copy_from_slice(&buffer[..n]));
            listening = tokio::time::timeout(STALL, sent).await.is_ok_and(|sent| sent.is_ok());
        }
        if !listening && stop {
            return;
        }
    }
}

/// What git says besides goes to the log, bounded.
fn drain_errors(child: &mut Child) -> Option<tokio::task::JoinHandle<()>> {
    let mut stderr = child.stderr.take()?;
    Some(tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(n) = stderr.read(&mut buffer).await {
            if n == 0 {
                return;
            }
            tracing::debug!(said = %String::from_utf8_lossy(&buffer[..n]).escape_debug(), "git");
        }
    }))
}

/// The response, once git has begun to speak; then unbuffered.
async fn answer(mut receiver: mpsc::Receiver<Bytes>, kind: &'static str) -> Result<Response, Refusal> {
    // Silence is an answer too: a client that is about to send much probes with an empty request first.
    let first = receiver.recv().await.unwrap_or_default();
    let rest = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let stream =
        futures_util::stream::once(async { first }).chain(rest).map(Ok::<_, std::convert::Infallible>);
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Proxies that gather answers would hide the build until its end.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    no_cache(&mut response);
    Ok(response)
}

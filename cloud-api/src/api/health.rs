//! `/healthz`, `/readyz`, `/metrics`: for whoever watches the server.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{
    app::App,
    error::{Problem, Result},
};

/// `GET /healthz`: the process answers. Touches nothing that could block.
pub async fn healthz() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], "ok\n").into_response()
}

/// `GET /readyz`: requests would succeed: the database answers and the server is not stopping.
///
/// # Errors
/// 503 `stopping` or `database_unavailable`.
pub async fn readyz(State(app): State<App>) -> Result<Response> {
    let not_ready = |code, why: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, why).retry_after(2);
    if app.stopping.is_cancelled() {
        return Err(not_ready("stopping", "The server is stopping."));
    }
    let asked = sqlx::query_scalar::<_, i64>("SELECT 1").fetch_one(app.db.read());
    match tokio::time::timeout(std::time::Duration::from_secs(2), asked).await {
        Ok(Ok(_)) => Ok(([(header::CACHE_CONTROL, "no-store")], "ready\n").into_response()),
        _ => Err(not_ready("database_unavailable", "The database does not answer.")),
    }
}

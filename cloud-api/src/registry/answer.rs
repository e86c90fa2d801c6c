//! Errors as the Distribution specification spells them.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::{blobs::SpoolError, error::Problem};

/// A refusal or failure, for an OCI client.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct OciError {
    status: StatusCode,
    code: &'static str,
    message: String,
    challenge: Option<String>,
    headers: Vec<(&'static str, String)>,
}

impl OciError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), challenge: None, headers: Vec::new() }
    }

    pub(super) fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "the registry failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            "something failed in the cloud; its log has the cause",
        )
    }

    pub(super) fn blob_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "this repository has no such blob")
    }

    pub(super) fn manifest_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "this repository has no such manifest")
    }

    pub(super) fn digest(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Says where credentials are to be had, if this is about credentials.
    pub(super) fn challenge(mut self, challenge: &str) -> Self {
        if self.status == StatusCode::UNAUTHORIZED {
            self.challenge = Some(challenge.to_owned());
        }
        self
    }

    /// For messages outside the registry.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<sqlx::Error> for OciError {
    fn from(error: sqlx::Error) -> Self {
        Self::internal(error)
    }
}

impl From<SpoolError> for OciError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Digest { .. } => Self::digest(error.to_string()),
            SpoolError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", error.to_string())
            }
            other => Self::internal(other),
        }
    }
}

impl From<Problem> for OciError {
    fn from(problem: Problem) -> Self {
        let (status, code) = match problem.status() {
            StatusCode::UNAUTHORIZED => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            StatusCode::FORBIDDEN => (StatusCode::FORBIDDEN, "DENIED"),
            StatusCode::NOT_FOUND => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            StatusCode::TOO_MANY_REQUESTS => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            other => (other, "UNKNOWN"),
        };
        // The message carries the stable code, so that an agent can tell a revoked device from a lack of rights.
        Self::new(status, code, format!("{}: {}", problem.code(), problem.detail()))
    }
}

impl IntoResponse for OciError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(challenge) = self.challenge.and_then(|c| HeaderValue::from_str(&c).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

//! The device routes, over a few kept connections that all devices share.

use std::time::Duration;

use anyhow::{Context as _, bail};
use copal_protocol::{config::DeviceFile, ids::Sha256Hex};
use serde::{Serialize, de::DeserializeOwned};

/// The cloud said no.
#[derive(Debug)]
pub(crate) struct Refused {
    what: String,
    /// It is busy, and said when to come again.
    pub(crate) later: Option<Duration>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refused {}

/// When to come again, of an answer that says that the cloud is busy.
pub(crate) fn later(status: u16, headers: &http::HeaderMap) -> Option<Duration> {
    let said = || headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok();
    matches!(status, 429 | 503).then(|| Duration::from_secs(said().unwrap_or(5)))
}

/// See the module.
pub(crate) struct Http {
    client: reqwest::Client,
    base: String,
}

impl Http {
    pub(crate) fn new(file: &DeviceFile) -> anyhow::Result<Self> {
        let mut tls = copal_tls::client_config(&file.tls_pins, &copal_tls::system_clock())?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(64)
            .build()?;
        Ok(Self { client, base: file.cloud_url.trim_end_matches('/').to_owned() })
    }

    /// Posts; an answer that is no success is an error with its code.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        route: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let request = self.client.post(format!("{}{route}", self.base)).json(body);
        let answer = request.send().await.with_context(|| format!("POST {route}"))?;
        let status = answer.status();
        let later = later(status.as_u16(), answer.headers());
        let bytes = answer.bytes().await?;
        if !status.is_success() {
            let what = format!("POST {route}: {status}: {}", String::from_utf8_lossy(&bytes));
            return Err(Refused { what, later }.into());
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Posts a report; whether it was taken.
    pub(crate) async fn report(&self, token: &str, envelope: Vec<u8>) -> anyhow::Result<bool> {
        let request = self.client.post(format!("{}/device/v1/report", self.base)).bearer_auth(token);
        let request = request.header(http::header::CONTENT_TYPE, "application/json").body(envelope);
        Ok(request.send().await?.status().is_success())
    }

    /// The assignment, where it is another than `held`.
    pub(crate) async fn state(
        &self,
        token: &str,
        held: Option<Sha256Hex>,
    ) -> anyhow::Result<Option<Vec<u8>>> {
        let mut request = self.client.get(format!("{}/device/v1/state", self.base)).bearer_auth(token);
        if let Some(held) = held {
            request = request.header(http::header::IF_NONE_MATCH, format!("\"{held}\""));
        }
        let answer = request.send().await?;
        match answer.status().as_u16() {
            200 => Ok(Some(answer.bytes().await?.to_vec())),
            204 | 304 => Ok(None),
            status => bail!("GET /device/v1/state: {status}"),
        }
    }
}

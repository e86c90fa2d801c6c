//! One layer on its way: fetched from the cloud, resumed where it was cut, hashed both as stored and unpacked.

use std::{io::Write as _, time::Duration};

use bytes::Bytes;
use copal_protocol::{ids::Digest, verify::Code};
use flate2::write::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::plan::{Packing, PlannedLayer};
use crate::{
    apply::ports::ApplyError,
    cloud::{CloudError, random},
    identity::{Session, SessionError},
};

/// Compressed bytes unpacked at a time: at gzip's worst ratio of about 1:1032 they become 2 MiB.
const BITE: usize = 2 << 10;
/// A layer that unpacks to more than this is a bomb: no real file system reaches a tenth of the ratio on the whole.
const MAX_RATIO: u64 = 200;
const FREE_OUTPUT: u64 = 64 << 20;
/// Tries without a single new byte before the pull is given up; the lane tries again later.
const TRIES: u32 = 5;

/// What is done with bytes on their way.
pub(super) trait Sink: Send {
    /// Takes unpacked (or, for a containerd engine, stored) bytes; false ends the layer.
    fn take(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
    /// Told of stored bytes fetched.
    fn fetched(&self, bytes: u64);
}

/// Turns stored bytes into what the engine is given, and knows at the end whether they were the signed ones. Pure.
pub(super) struct Unpacker {
    planned: PlannedLayer,
    stored: Sha256,
    stored_bytes: u64,
    unpacked: Sha256,
    unpacked_bytes: u64,
    gzip: Option<MultiGzDecoder<Vec<u8>>>,
}

impl Unpacker {
    pub fn new(planned: PlannedLayer) -> Self {
        let gzip = (planned.packing == Packing::Gzip).then(|| MultiGzDecoder::new(Vec::new()));
        Self {
            planned,
            stored: Sha256::new(),
            stored_bytes: 0,
            unpacked: Sha256::new(),
            unpacked_bytes: 0,
            gzip,
        }
    }

    /// Where the next stored byte belongs.
    pub fn at(&self) -> u64 {
        self.stored_bytes
    }

    pub fn is_complete(&self) -> bool {
        self.stored_bytes == self.planned.layer.size
    }

    /// Takes at most [`BITE`] stored bytes; gives the bytes for the engine.
    pub fn feed(&mut self, bite: &[u8]) -> Result<Bytes, ApplyError> {
        self.stored_bytes += bite.len() as u64;
        if self.stored_bytes > self.planned.layer.size {
            return Err(self.refuse(&format!("is longer than its signed {} bytes", self.planned.layer.size)));
        }
        self.stored.update(bite);
        let Some(gzip) = &mut self.gzip else {
            self.unpacked.update(bite);
            self.unpacked_bytes += bite.len() as u64;
            return Ok(Bytes::copy_from_slice(bite));
        };
        if let Err(e) = gzip.write_all(bite).and_then(|()| gzip.flush()) {
            return Err(self.refuse(&format!("is no gzip stream: {e}")));
        }
        let out = std::mem::take(gzip.get_mut());
        self.unpacked.update(&out);
        self.unpacked_bytes += out.len() as u64;
        let cap = self.planned.layer.size.saturating_mul(MAX_RATIO).saturating_add(FREE_OUTPUT);
        if self.unpacked_bytes > cap {
            return Err(ApplyError::new(
                Code::TooLarge.as_str(),
                format!(
                    "layer {} of {} bytes unpacks to more than {cap}: refused as a decompression bomb",
                    self.planned.layer.digest, self.planned.layer.size
                ),
            ));
        }
        if self.planned.unpack { Ok(out.into()) } else { Ok(Bytes::copy_from_slice(bite)) }
    }

    /// The last bytes, once everything was fed, if all of it was what is signed.
    pub fn finish(mut self) -> Result<Bytes, ApplyError> {
        let mut rest = Vec::new();
        if let Some(gzip) = self.gzip.take() {
            rest = gzip.finish().map_err(|e| self.refuse(&format!("is a torn gzip stream: {e}")))?;
            self.unpacked.update(&rest);
        }
        let stored = Digest::from_bytes(self.stored.clone().finalize().into());
        if stored != self.planned.layer.digest {
            return Err(self.refuse(&format!("arrived as {stored}")));
        }
        let unpacked = Digest::from_bytes(self.unpacked.clone().finalize().into());
        if unpacked != self.planned.layer.diff_id {
            return Err(
                self.refuse(&format!("unpacks to {unpacked} where {} is signed", self.planned.layer.diff_id))
            );
        }
        Ok(if self.planned.unpack { rest.into() } else { Bytes::new() })
    }

    fn refuse(&self, what: &str) -> ApplyError {
        ApplyError::new(
            Code::PullVerify.as_str(),
            format!(
                "layer {} of the cloud's registry {what}: nothing of it is used",
                self.planned.layer.digest
            ),
        )
    }
}

/// Brings one layer: fetches it from where it was cut, as often as it brings anything new.
pub(super) async fn bring(
    session: &Session,
    repo: &str,
    planned: &PlannedLayer,
    sink: &mut impl Sink,
) -> Result<(), ApplyError> {
    let path = format!("/v2/{repo}/blobs/{}", planned.layer.digest);
    let mut unpacker = Unpacker::new(planned.clone());
    let mut tries = 0;
    while !unpacker.is_complete() {
        let before = unpacker.at();
        let cut = match pour(session, &path, &mut unpacker, sink).await {
            Ok(Poured::Gone) => return Ok(()),
            Ok(Poured::End) => CloudError::transport("the registry ended the layer early").into(),
            Err(Trouble::Verify(e)) => return Err(e),
            Err(Trouble::Network(e)) => e,
        };
        if unpacker.is_complete() {
            break;
        }
        tries = if unpacker.at() > before { 0 } else { tries + 1 };
        let gives_up = tries >= TRIES
            || matches!(&cut, SessionError::Cloud(CloudError::Refused { status: 400..=499, .. }));
        if gives_up {
            return Err(from_session(&format!("layer {}", planned.layer.digest), &cut));
        }
        tracing::debug!(layer = %planned.layer.digest, at = unpacker.at(), error = %cut, "a layer was cut and goes on");
        let jitter = Duration::from_millis(random() % 500);
        tokio::time::sleep(Duration::from_millis(250) * (1 << tries) + jitter).await;
    }
    let rest = unpacker.finish()?;
    if !rest.is_empty() {
        sink.take(rest).await;
    }
    Ok(())
}

/// A failed call, as a step's failure.
pub(super) fn from_session(what: &str, error: &SessionError) -> ApplyError {
    let code = match error {
        SessionError::Cloud(e) if !matches!(e, CloudError::Refused { .. }) => e.code(),
        SessionError::Cloud(CloudError::Refused { status: 404, .. }) => Code::PullVerify.as_str(),
        _ => Code::Transport.as_str(),
    };
    ApplyError::new(code, format!("{what} cannot be had from the cloud's registry: {error}"))
}

enum Poured {
    /// The cloud sent all it had.
    End,
    /// The engine hung up.
    Gone,
}

enum Trouble {
    Verify(ApplyError),
    Network(SessionError),
}

async fn pour(
    session: &Session,
    path: &str,
    unpacker: &mut Unpacker,
    sink: &mut impl Sink,
) -> Result<Poured, Trouble> {
    let mut blob = session.blob(path, unpacker.at()).await.map_err(Trouble::Network)?;
    // A server without ranges begins anew: skip what was had.
    let mut skip = unpacker.at().saturating_sub(blob.at());
    while let Some(chunk) = blob.chunk().await.map_err(|e| Trouble::Network(e.into()))? {
        let had = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= had as u64;
        for bite in chunk[had..].chunks(BITE) {
            let out = unpacker.feed(bite).map_err(Trouble::Verify)?;
            sink.fetched(bite.len() as u64);
            if !out.is_empty() && !sink.take(out).await {
                return Ok(Poured::Gone);
            }
        }
    }
    Ok(Poured::End)
}

#[cfg(test)]
mod tests {
    use copal_protocol::documents::Layer;
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn planned(stored: &[u8], tar: &[u8]) -> PlannedLayer {
        PlannedLayer {
            layer: Layer {
                digest: Digest::of(stored),
                size: stored.len() as u64,
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
                diff_id: Digest::of(tar),
            },
            packing: Packing::Gzip,
            unpack: true,
        }
    }

    fn run(planned: &PlannedLayer, stored: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let mut unpacker = Unpacker::new(planned.clone());
        let mut out = Vec::new();
        for bite in stored.chunks(BITE) {
            out.extend_from_slice(&unpacker.feed(bite)?);
        }
        out.extend_from_slice(&unpacker.finish()?);
        Ok(out)
    }

    #[test]
    fn two_gzip_members_are_one_layer() {
        let stored = [gzip(b"first "), gzip(b"second")].concat();
        assert_eq!(run(&planned(&stored, b"first second"), &stored).unwrap(), b"first second");
    }

    #[test]
    fn a_swapped_torn_or_longer_layer_is_refused() {
        let (tar, other) = (vec![7; 9000], vec![8; 9000]);
        let (stored, swapped) = (gzip(&tar), gzip(&other));
        let planned = planned(&stored, &tar);
        assert_eq!(run(&planned, &stored).unwrap(), tar);
        assert_eq!(run(&planned, &swapped).unwrap_err().code, "E_PULL_VERIFY");
        assert_eq!(run(&planned, &stored[..stored.len() - 1]).unwrap_err().code, "E_PULL_VERIFY");
        assert_eq!(run(&planned, &[&stored[..], b"x"].concat()).unwrap_err().code, "E_PULL_VERIFY");
    }

    #[test]
    fn a_layer_that_unpacks_to_something_else_is_refused() {
        let stored = gzip(b"evil");
        assert_eq!(run(&planned(&stored, b"good"), &stored).unwrap_err().code, "E_PULL_VERIFY");
    }

    #[test]
    fn a_decompression_bomb_is_stopped_at_its_cap() {
        let stored = gzip(&vec![0; 120 << 20]);
        let error = run(&planned(&stored, b""), &stored).unwrap_err();
        assert_eq!(error.code, "E_TOO_LARGE");
    }

    proptest! {
        #[test]
        fn any_layer_comes_out_as_it_went_in(tar in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let stored = gzip(&tar);
            prop_assert_eq!(run(&planned(&stored, &tar), &stored).unwrap(), tar);
        }

        #[test]
        fn no_flipped_byte_passes(tar in proptest::collection::vec(any::<u8>(), 1..2000), at: usize, bit in 0_u8..8) {
            let stored = gzip(&tar);
            let mut flipped = stored.clone();
            flipped[at % stored.len()] ^= 1 << bit;
            prop_assert!(run(&planned(&stored, &tar), &flipped).is_err());
        }
    }
}

//! Installs the root image of a bundle file into a file or partition, for measuring: prints bytes fetched, requests, bytes
//! written. `os_install BUNDLE TARGET OLD|- STATE`. Verifies no signature.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use bytes::Bytes;
use copal_agent::{
    os::{
        disk::RealDisks,
        install::{
            Blobs, FetchError, InstallPlan, Patience, PayloadPlan, Ranged, StateJournal, finish, install,
        },
    },
    state::{RealFs, StateDir},
};
use copal_bundle::{
    Header,
    file::{self, Span},
};
use copal_protocol::{documents::Release, ids::Sha256Hex};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};

struct Bundle {
    file: Arc<File>,
    blobs: Vec<(Sha256Hex, Span)>,
}

impl Blobs for Bundle {
    fn range(&self, sha256: Sha256Hex, from: u64, to: u64) -> BoxFuture<'_, Result<Ranged, FetchError>> {
        let found = self.blobs.iter().find(|(name, _)| *name == sha256).map(|(_, span)| *span);
        let file = Arc::clone(&self.file);
        async move {
            let span =
                found.ok_or(FetchError { why: "no such blob".to_owned(), again: false, after: None })?;
            let pieces = (from..to.min(span.size)).step_by(64 << 10).map(move |at| {
                let mut bytes = vec![0; usize::try_from((to - at).min(64 << 10)).unwrap_or(0)];
                file.read_exact_at(&mut bytes, span.offset + at)
                    .map_err(|e| FetchError::passing(e.to_string()))?;
                Ok(Bytes::from(bytes))
            });
            Ok(Ranged { from, stream: stream::iter(pieces).boxed() })
        }
        .boxed()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [bundle, target, old, state] = args.as_slice() else {
        return Err("os_install BUNDLE TARGET OLD|- STATE".into());
    };
    let mut from = File::open(bundle)?;
    let contents = file::read(&mut from)?;
    let value: serde_json::Value = serde_json::from_slice(&contents.release)?;
    let release: Release = serde_json::from_value(value["unsigned"].clone())?;
    let held = contents.payloads.iter().find(|p| p.name == "rootfs").ok_or("no rootfs")?;
    let payload = release.payloads.get("rootfs").ok_or("no rootfs")?.clone();
    let index = held.index.ok_or("no index")?;
    let mut header = [0; Header::LEN];
    from.read_exact_at(&mut header, index.offset)?;
    let data = Sha256Hex::from_bytes(Header::parse(&header)?.data_sha256);
    let name = payload.index.as_ref().ok_or("no index")?.sha256;
    let source = Bundle { file: Arc::new(from), blobs: vec![(name, index), (data, held.data)] };
    let old = (old.as_os_str() != "-").then(|| old.clone());
    let plan = InstallPlan {
        release: Sha256Hex::of(&contents.release),
        payloads: vec![PayloadPlan { name: "rootfs".to_owned(), payload, target: target.clone(), old }],
        work: state.join("work"),
        patience: Patience::default(),
    };
    let journal = StateJournal(Arc::new(StateDir::open(state, Arc::new(RealFs))?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cancel = tokio_util::sync::CancellationToken::new();
    let installing =
        install(Arc::new(source), plan, Arc::new(RealDisks), Arc::new(journal), Arc::new(|_| ()), cancel);
    let installed = runtime.block_on(installing)?;
    finish(&RealDisks, &installed)?;
    let stats = installed.stats;
    println!("{} {} {}", stats.downloaded, stats.requests, stats.written);
    eprintln!("kept {} reused {}", stats.kept, stats.reused);
    Ok(())
}

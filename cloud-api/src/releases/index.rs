//! What the cloud reads of a chunk index: which image it describes, and which blob holds that image's data.
//!
//! Only the header is looked at. That the rest is sound is for the device to find out, which trusts nothing of it before
//! the signed release named it.

use copal_bundle::Header;
use copal_protocol::ids::Digest;
use futures_util::TryStreamExt as _;

use crate::{
    app::App,
    blobs,
    error::{Problem, Result},
};

/// The header of an index that is stored.
///
/// # Errors
/// `index_invalid`.
pub(super) async fn header(app: &App, index: &Digest, size: u64) -> Result<Header> {
    let end = size.min(Header::LEN as u64);
    let stream = blobs::read(app, index, Some(0..end)).await.map_err(Problem::internal)?;
    let bytes: Vec<u8> = stream
        .try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
        .map_err(Problem::internal)?;
    let refused = |why: String| {
        Problem::invalid(
            "index_invalid",
            format!(
                "The blob {index} is no chunk index this server reads: {why}. Make the bundle anew with `copal os bundle create`."
            ),
        )
    };
    let header = Header::parse(&bytes).map_err(|e| refused(e.to_string()))?;
    if header.index_size() != size {
        return Err(refused(format!("it should have {} bytes and has {size}", header.index_size())));
    }
    Ok(header)
}

/// For tests: an index of this image (whole blocks) that names this data. Header and length are right, the rest is empty.
#[cfg(test)]
pub(super) fn example(image: &[u8], data: &[u8]) -> Vec<u8> {
    use copal_protocol::ids::Sha256Hex;
    let header = Header {
        image_size: image.len() as u64,
        image_sha256: *Sha256Hex::of(image).as_bytes(),
        data_size: data.len() as u64,
        data_sha256: *Sha256Hex::of(data).as_bytes(),
        distinct: 1,
        groups: 1,
        map_size: 0,
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(usize::try_from(header.index_size()).unwrap(), 0);
    bytes
}

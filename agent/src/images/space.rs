//! Whether an image fits on the engine's disk, before any harm.

use std::path::Path;

use copal_protocol::{documents::ImageRef, verify::Code};

use super::plan::{Packing, packing};
use crate::apply::ports::ApplyError;

/// What gzip makes of common layers; the unpacked size is not signed.
const GZIP_RATIO: u64 = 3;
/// Left free for the engine's own files, bytes.
const SPARE: u64 = 16 << 20;

/// The bytes a pull may need at its worst: every layer unpacked, and the largest once more while it is taken in.
pub(super) fn needed(image: &ImageRef) -> u64 {
    let unpacked = |layer: &copal_protocol::documents::Layer| match packing(layer) {
        Ok(Packing::Plain) => layer.size,
        _ => layer.size.saturating_mul(GZIP_RATIO),
    };
    let sum = image.layers.iter().map(unpacked).fold(0_u64, u64::saturating_add);
    let largest = image.layers.iter().map(unpacked).max().unwrap_or(0);
    sum.saturating_add(largest).saturating_add(SPARE)
}

/// Refuses an image that cannot fit.
pub(super) fn check(image: &ImageRef, root: &Path) -> Result<(), ApplyError> {
    // Where the engine's folder cannot be seen (another mount namespace), the engine itself will say.
    let Ok(stat) = nix::sys::statvfs::statvfs(root) else { return Ok(()) };
    #[allow(clippy::useless_conversion, reason = "32 bits wide on some of our targets")]
    let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
    judge(needed(image), free, root)
}

fn judge(needed: u64, free: u64, root: &Path) -> Result<(), ApplyError> {
    if needed <= free {
        return Ok(());
    }
    Err(ApplyError::new(
        Code::NoSpace.as_str(),
        format!(
            "the image may need {} MB on {} and {} MB are free: free at least {} MB",
            needed >> 20,
            root.display(),
            free >> 20,
            (needed - free).div_ceil(1 << 20)
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_much_is_missing() {
        let error = judge(300 << 20, 100 << 20, Path::new("/data")).unwrap_err();
        assert_eq!(error.code, "E_NO_SPACE");
        assert!(error.message.contains("free at least 200 MB"), "{error}");
        assert_eq!(judge(5, 5, Path::new("/data")), Ok(()));
    }
}

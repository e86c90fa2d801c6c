//! The index of a payload: kept between runs, fetched where it is not there, resumed where it is there in part.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::Path,
};

use copal_bundle::Index;
use copal_protocol::ids::Sha256Hex;
use sha2::{Digest as _, Sha256};

use super::{Fetcher, InstallError, PayloadPlan};

/// The index of a payload, fetched where it is not there yet, and its name.
pub(super) fn open_index(
    net: &mut Fetcher,
    work: &Path,
    plan: &PayloadPlan,
) -> Result<(Sha256Hex, Index<File>), InstallError> {
    let corrupt = |why: &dyn std::fmt::Display| {
        InstallError::new("os_corrupt", format!("the index of {} cannot be used: {why}", plan.name))
    };
    let keep = |e: io::Error| InstallError::keep("the index", &e);
    let Some((name, size)) = plan.payload.index.as_ref().and_then(|i| Some((i.sha256, i.size?))) else {
        return Err(corrupt(&"the release does not name one with its size"));
    };
    if size > copal_bundle::MAX_INDEX {
        return Err(corrupt(&"it is larger than any index may be"));
    }
    let path = work.join(format!("{name}.index"));
    if sha256_of(&path).map_err(keep)? != Some(*name.as_bytes()) {
        fetch_index(net, work, name, size, &path, &corrupt)?;
    }
    let index = Index::open(File::open(&path).map_err(keep)?, size).map_err(|e| corrupt(&e))?;
    let header = index.header();
    if (header.image_size, &header.image_sha256) != (plan.payload.size, plan.payload.sha256.as_bytes()) {
        return Err(corrupt(&"it is the index of another image"));
    }
    Ok((name, index))
}

fn fetch_index(
    net: &mut Fetcher,
    work: &Path,
    name: Sha256Hex,
    size: u64,
    path: &Path,
    corrupt: &dyn Fn(&dyn std::fmt::Display) -> InstallError,
) -> Result<(), InstallError> {
    let keep = |e: io::Error| InstallError::keep("the index", &e);
    let part = work.join(format!("{name}.part"));
    for _ in 0..2 {
        let mut file = OpenOptions::new().append(true).create(true).open(&part).map_err(keep)?;
        let there = file.metadata().map_err(keep)?.len();
        if there < size {
            net.fetch(name, (there, size, size), &mut |bytes| file.write_all(bytes).map_err(keep))?;
        }
        file.sync_all().map_err(keep)?;
        if sha256_of(&part).map_err(keep)? == Some(*name.as_bytes()) {
            return fs::rename(&part, path).map_err(keep);
        }
        fs::remove_file(&part).map_err(keep)?;
    }
    Err(corrupt(&"what the server sends is not what the release names"))
}

fn sha256_of(path: &Path) -> io::Result<Option<[u8; 32]>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(hash.finalize().into())),
            n => hash.update(&piece[..n]),
        }
    }
}

//! Slot images: each a version of the same tree, with or without something wrong in it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::SystemTime,
};

use crate::{board::Board, repository};

/// An image, made by `images/os/build.sh` unless it is there already and newer than what it is made of.
pub fn image(board: Board, version: &str, faults: &[&str]) -> PathBuf {
    // Two at a time would share one tree.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let name = if faults.is_empty() { version.to_owned() } else { format!("{version}-{}", faults.join("-")) };
    let file = board.folder().join("images").join(format!("{name}.ext4"));
    let made = modified(&file);
    let scripts = ["images/os/build.sh", "images/os/grub.sh"].map(|name| repository().join(name));
    let sources = [board.built("agent")].into_iter().chain(scripts);
    let fresh = made.is_some_and(|made| {
        sources
            .chain(walk(&repository().join("images/os/root")))
            .all(|s| modified(&s).is_some_and(|t| t < made))
    });
    if !fresh {
        let output = Command::new(repository().join("images/os/build.sh"))
            .args(board.build_words())
            .args(["image", &name, version])
            .args(faults)
            .output()
            .unwrap();
        assert!(output.status.success(), "images/os/build.sh image {name}: {}", copal_e2e::text(&output));
    }
    file
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|m| m.modified()).ok()
}

/// Every file in a folder.
pub(crate) fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

//! Repository names, references and paths of the API.

use copal_protocol::ids::Digest;
use sha2::{Digest as _, Sha256};

/// The longest repository name, as clients bound it too.
const MAX_REPO: usize = 255;

/// What a path under `/v2/<repository>/` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Blob(Digest),
    Manifest(Reference),
    Tags,
    Referrers(Digest),
    Uploads,
    Upload(String),
}

/// Which manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(digest) = text.parse() {
            return Some(Self::Digest(digest));
        }
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        (first && rest && text.len() <= 128).then(|| Self::Tag(text.to_owned()))
    }
}

/// Splits a path into repository and target.
pub(super) fn parse(rest: &str) -> Option<(String, Target)> {
    let cut = |marker: &str| {
        let at = rest.rfind(marker)?;
        let repo = &rest[..at];
        is_repo(repo).then(|| (repo.to_owned(), &rest[at + marker.len()..]))
    };
    if let Some((repo, id)) = cut("/blobs/uploads/") {
        if id.is_empty() {
            return Some((repo, Target::Uploads));
        }
        let plain = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        return plain.then(|| (repo, Target::Upload(id.to_owned())));
    }
    if let Some((repo, "")) = cut("/blobs/uploads") {
        return Some((repo, Target::Uploads));
    }
    if let Some((repo, "")) = cut("/tags/list") {
        return Some((repo, Target::Tags));
    }
    if let Some((repo, digest)) = cut("/blobs/") {
        return Some((repo, Target::Blob(digest.parse().ok()?)));
    }
    if let Some((repo, digest)) = cut("/referrers/") {
        return Some((repo, Target::Referrers(digest.parse().ok()?)));
    }
    let (repo, reference) = cut("/manifests/")?;
    Some((repo, Target::Manifest(Reference::parse(reference)?)))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` in each of two or more parts: the fleet's slug and what follows.
pub(super) fn is_repo(text: &str) -> bool {
    text.len() <= MAX_REPO && text.contains('/') && text.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alnum) || !bytes.last().is_some_and(alnum) {
        return false;
    }
    bytes.split(|b| alnum(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

/// Where a service's images are kept: `<slug>/<service>` wherever that is a repository name, else with a short hash
/// in the service's place, since Compose allows names a registry does not (`Web`, `a..b`).
#[must_use]
pub fn repo_of(slug: &str, service: &str) -> String {
    if is_component(service) {
        return format!("{slug}/{service}");
    }
    let hash = hex::encode(&Sha256::digest(service.as_bytes())[..6]);
    let plain: String =
        service.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    format!("{slug}/{plain}-{hash}").replace("/-", "/x-")
}

/// A query string's parameters; the last of a name counts. Registry queries are few, so the bound is small.
pub(super) fn query(text: &str) -> std::collections::BTreeMap<String, String> {
    serde_urlencoded(text).into_iter().take(32).collect()
}

fn serde_urlencoded(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(name), percent_decode(value))
        })
        .collect()
}

/// Percent and plus decoding; what is not UTF-8 afterwards names nothing here and becomes replacement characters.
pub(super) fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let digest = Digest::of(b"x");
        let repo = |r: &str| r.to_owned();
        assert_eq!(parse(&format!("a/b/blobs/{digest}")), Some((repo("a/b"), Target::Blob(digest))));
        assert_eq!(parse("a/b/blobs/uploads/"), Some((repo("a/b"), Target::Uploads)));
        assert_eq!(parse("a/b/tags/list"), Some((repo("a/b"), Target::Tags)));
        assert_eq!(
            parse("a/blobs/manifests/manifests/v1"),
            Some((repo("a/blobs/manifests"), Target::Manifest(Reference::Tag("v1".to_owned()))))
        );
        for bad in [
            "",
            "a",
            "a/manifests/v1",
            "../x/manifests/v1",
            "A/b/manifests/v1",
            "a/b/blobs/sha256:00",
            "a//b/manifests/1",
            "a/b/manifests/.x",
            "a/b/blobs/uploads/../../x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_service_name_has_a_repository() {
        assert_eq!(repo_of("demo", "web"), "demo/web");
        let odd = ["Web", "WEB", "a..b", "a.b", "ab", "x-", "é", "_", "A_b.c", "...", "web"];
        let repos: std::collections::BTreeSet<String> = odd.iter().map(|o| repo_of("demo", o)).collect();
        assert_eq!(repos.len(), odd.len(), "{repos:?}");
        assert!(repos.iter().all(|r| is_repo(r)), "{repos:?}");
    }

    #[test]
    fn queries_are_decoded() {
        let q = query("digest=sha256%3Aab&from=a%2fb&n=5&bad=%zz+");
        assert_eq!(q["digest"], "sha256:ab");
        assert_eq!(q["from"], "a/b");
        assert_eq!(q["bad"], "%zz ");
    }
}

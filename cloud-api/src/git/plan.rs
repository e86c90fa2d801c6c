//! What a push asks for: from refs and options to what is built, or a reason to refuse. Pure.

/// Commits one push may have built.
const MAX_COMMITS: usize = 5;

/// Refs one push may move.
const MAX_REFS: usize = 1000;

const OPTIONS: &str = "draft (do not deploy), nocache (build everything anew), note=TEXT (for the release), nowait (do not wait for the build)";

/// A ref that shall move. Object names are 40 hex digits, all zeros for none.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Update {
    pub(super) old: String,
    pub(super) new: String,
    pub(super) name: String,
}

/// Push options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) draft: bool,
    pub(super) nocache: bool,
    pub(super) nowait: bool,
    pub(super) note: String,
}

/// A ref whose commit is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) object: String,
    pub(super) version: Option<semver::Version>,
    /// A branch of this name deploys, or not; a tag deploys when its commit is what the default branch is at.
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    DefaultBranch,
    OtherBranch,
    Tag,
}

impl Target {
    /// Without `refs/heads/` or `refs/tags/`.
    pub(super) fn short(&self) -> &str {
        short(&self.name)
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")).unwrap_or(name)
}

pub(super) fn options(given: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    for option in given {
        match option.split_once('=') {
            None if option == "draft" => options.draft = true,
            None if option == "nocache" => options.nocache = true,
            None if option == "nowait" => options.nowait = true,
            Some(("note", text)) if text.chars().count() <= 500 && !text.chars().any(char::is_control) => {
                options.note = text.to_owned();
            }
            Some(("note", _)) => {
                return Err("the note is longer than 500 characters or not plain text".to_owned());
            }
            _ => {
                let shown: String = option.chars().filter(|c| !c.is_control()).take(60).collect();
                return Err(format!("the push option {shown:?} is not known; there are: {OPTIONS}"));
            }
        }
    }
    Ok(options)
}

/// The branch that deploys: the one that does already, else the first pushed of `main` and `master`.
pub(super) fn default_branch(existing: Option<&str>, updates: &[Update]) -> Option<String> {
    let pushed = |name: &str| updates.iter().any(|u| u.name.strip_prefix("refs/heads/") == Some(name));
    existing
        .map(str::to_owned)
        .or_else(|| ["main", "master"].into_iter().find(|name| pushed(name)).map(str::to_owned))
}

fn is_none(object: &str) -> bool {
    object.bytes().all(|b| b == b'0')
}

/// What is to be built, in the order branches then tags; and lines for the pusher.
pub(super) fn targets(
    updates: &[Update],
    default: Option<&str>,
) -> Result<(Vec<Target>, Vec<String>), String> {
    if updates.len() > MAX_REFS {
        return Err(format!("the push moves more than {MAX_REFS} refs; push fewer at a time"));
    }
    let mut targets = Vec::new();
    let mut said = Vec::new();
    for update in updates {
        let name = &update.name;
        if !plain(&update.old) || !plain(&update.new) {
            return Err("only SHA-1 repositories are taken".to_owned());
        }
        if is_none(&update.new) {
            return Err(format!(
                "{} stays: releases name the commits of this repository, so branches and tags are not deleted here",
                short(name)
            ));
        }
        if let Some(branch) = name.strip_prefix("refs/heads/") {
            let kind = if default == Some(branch) { Kind::DefaultBranch } else { Kind::OtherBranch };
            if kind == Kind::OtherBranch {
                let deploys = default.unwrap_or("main");
                said.push(format!(
                    "{branch} becomes a draft: only {deploys} deploys by itself (git push <remote> {branch}:{deploys})"
                ));
            }
            targets.push(Target { name: name.clone(), object: update.new.clone(), version: None, kind });
        } else if let Some(tag) = name.strip_prefix("refs/tags/") {
            match version(tag) {
                Some(version) if is_none(&update.old) => targets.push(Target {
                    name: name.clone(),
                    object: update.new.clone(),
                    version: Some(version),
                    kind: Kind::Tag,
                }),
                Some(_) => {
                    return Err(format!(
                        "the tag {tag} names a release already, and releases do not change; take a new version"
                    ));
                }
                None => {
                    said.push(format!("the tag {tag} is kept; only versions such as v1.2.3 make releases"));
                }
            }
        } else {
            return Err(format!(
                "{} cannot be pushed; only branches and tags are taken",
                name.escape_debug()
            ));
        }
    }
    targets.sort_by_key(|t| t.kind == Kind::Tag);
    let mut objects: Vec<&str> = targets.iter().map(|t| t.object.as_str()).collect();
    objects.sort_unstable();
    objects.dedup();
    // A tag object and its commit count as two here; the bound is about how long a push may take.
    if objects.len() > 2 * MAX_COMMITS {
        return Err(format!(
            "the push would build {} commits; push at most {MAX_COMMITS} branches or version tags at a time",
            objects.len()
        ));
    }
    Ok((targets, said))
}

fn plain(object: &str) -> bool {
    object.len() == 40 && object.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `v1.2.3` or `1.2.3`, with what semantic versions allow behind it.
fn version(tag: &str) -> Option<semver::Version> {
    semver::Version::parse(tag.strip_prefix('v').unwrap_or(tag)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: &str = "0000000000000000000000000000000000000000";
    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn update(old: &str, new: &str, name: &str) -> Update {
        Update { old: old.into(), new: new.into(), name: name.into() }
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused_with_the_list() {
        let given = ["draft", "nocache", "note=hello = world", "nowait"].map(str::to_owned);
        let want = Options { draft: true, nocache: true, nowait: true, note: "hello = world".into() };
        assert_eq!(options(&given), Ok(want));
        assert!(options(&["Draft".to_owned()]).unwrap_err().contains("nocache"));
        assert!(options(&["draft=1".to_owned()]).is_err());
        assert!(options(&[format!("note={}", "x".repeat(501))]).is_err());
    }

    #[test]
    fn the_default_branch_is_the_first_of_main_and_master() {
        let master = [update(ZERO, A, "refs/heads/master")];
        assert_eq!(default_branch(None, &master).as_deref(), Some("master"));
        assert_eq!(default_branch(Some("main"), &master).as_deref(), Some("main"));
        assert_eq!(default_branch(None, &[update(ZERO, A, "refs/heads/x")]), None);
    }

    #[test]
    fn branches_come_before_tags_and_only_versions_are_built() {
        let updates = [
            update(ZERO, A, "refs/tags/v1.2.3"),
            update(ZERO, A, "refs/tags/nice"),
            update(ZERO, A, "refs/heads/main"),
            update(ZERO, B, "refs/heads/topic"),
        ];
        let (targets, said) = targets(&updates, Some("main")).unwrap();
        let kinds: Vec<_> = targets.iter().map(|t| (t.short(), t.kind)).collect();
        assert_eq!(
            kinds,
            [("main", Kind::DefaultBranch), ("topic", Kind::OtherBranch), ("v1.2.3", Kind::Tag)]
        );
        assert_eq!(targets[2].version, Some(semver::Version::new(1, 2, 3)));
        assert_eq!(said.len(), 2, "{said:?}");
    }

    #[test]
    fn deletions_foreign_refs_and_moved_versions_are_refused() {
        for (old, new, name, why) in [
            (A, ZERO, "refs/heads/main", "not deleted"),
            (A, ZERO, "refs/tags/v1", "not deleted"),
            (ZERO, A, "refs/notes/x", "only branches"),
            (ZERO, A, "refs/heads", "only branches"),
            (A, B, "refs/tags/v1.0.0", "do not change"),
            (ZERO, "zz", "refs/heads/main", "SHA-1"),
        ] {
            let error = targets(&[update(old, new, name)], Some("main")).unwrap_err();
            assert!(error.contains(why), "{name}: {error}");
        }
    }

    #[test]
    fn a_push_of_many_commits_is_refused_before_anything_is_built() {
        let many: Vec<Update> =
            (0..11).map(|i| update(ZERO, &format!("{:040x}", i + 1), &format!("refs/heads/b{i}"))).collect();
        assert!(targets(&many, None).unwrap_err().contains("at a time"));
    }
}

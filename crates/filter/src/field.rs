//! The fields of a device, and what each can be compared with.

use std::fmt;

/// What a device can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// What people call it.
    Name,
    /// Its id.
    Id,
    /// Whether it was let in: one of [`STATES`].
    State,
    /// Whether it holds a connection or was heard of late.
    Online,
    /// How long ago it was heard.
    LastSeen,
    /// Version of its agent.
    Agent,
    /// Version or name of its operating system.
    Os,
    /// Version of the release it committed to.
    Release,
    /// Code of why it is not on its target.
    Reason,
    /// OCI architecture.
    Arch,
    /// What it is.
    DeviceType,
    /// Whether it runs exactly what it should.
    OnTarget,
    /// Whether it is pinned to a release.
    Pinned,
    /// The worst verdict its health checks last found: one of [`VERDICTS`].
    Health,
    /// What one health check last found, by its name: one of [`VERDICTS`].
    Check(String),
    /// A tag, by its key.
    Tag(String),
}

/// What a field holds, and so what it can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `=`, `!=`, `~`, `in`.
    Text,
    /// As text, and `<`, `<=`, `>`, `>=` by semantic versioning.
    Version,
    /// By itself, or `=` and `!=` with true and false.
    Flag,
    /// `<`, `<=`, `>`, `>=` with a time span.
    Ago,
}

/// What `state` can be.
pub const STATES: &[&str] = &["pending", "preauthorised", "accepted", "rejected", "revoked"];

/// What `health` and `check.<name>` can be; the worst is last.
pub const VERDICTS: &[&str] = &["ok", "unknown", "warning", "failed"];

/// Every field but tags and checks, by its name.
pub(crate) const NAMED: &[(&str, Field)] = &[
    ("name", Field::Name),
    ("id", Field::Id),
    ("state", Field::State),
    ("online", Field::Online),
    ("last_seen", Field::LastSeen),
    ("agent", Field::Agent),
    ("os", Field::Os),
    ("release", Field::Release),
    ("reason", Field::Reason),
    ("arch", Field::Arch),
    ("device_type", Field::DeviceType),
    ("on_target", Field::OnTarget),
    ("pinned", Field::Pinned),
    ("health", Field::Health),
];

/// The most characters of a tag's key.
const MAX_KEY: usize = 63;
/// The most characters of a check's name.
const MAX_CHECK: usize = 32;

impl Field {
    /// What it holds.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Name
            | Self::Id
            | Self::State
            | Self::Reason
            | Self::Arch
            | Self::DeviceType
            | Self::Health
            | Self::Check(_)
            | Self::Tag(_) => Kind::Text,
            Self::Agent | Self::Os | Self::Release => Kind::Version,
            Self::Online | Self::OnTarget | Self::Pinned => Kind::Flag,
            Self::LastSeen => Kind::Ago,
        }
    }

    /// Whether a device may be without it, so that `has` makes sense.
    #[must_use]
    pub const fn may_be_absent(&self) -> bool {
        matches!(
            self,
            Self::LastSeen
                | Self::Agent
                | Self::Os
                | Self::Release
                | Self::Reason
                | Self::Health
                | Self::Check(_)
                | Self::Tag(_)
        )
    }

    /// The only values it has, where they are known.
    pub(crate) const fn words(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::State => Some(STATES),
            Self::Health | Self::Check(_) => Some(VERDICTS),
            _ => None,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(key) => write!(f, "tag.{key}"),
            Self::Check(name) => write!(f, "check.{name}"),
            other => {
                let name = NAMED.iter().find(|(_, field)| field == other).map_or("", |(name, _)| name);
                f.write_str(name)
            }
        }
    }
}

/// Why a word names no field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoField {
    /// A tag whose key cannot be one.
    Key,
    /// A check whose name cannot be one.
    Check,
    /// None of ours.
    Unknown,
}

impl Field {
    /// The field a word names.
    pub(crate) fn named(word: &str) -> Result<Self, NoField> {
        if let Some(key) = word.strip_prefix("tag.") {
            let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
            return if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(sound) {
                Err(NoField::Key)
            } else {
                Ok(Self::Tag(key.to_owned()))
            };
        }
        if let Some(name) = word.strip_prefix("check.") {
            let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            return if name.is_empty() || name.len() > MAX_CHECK || !name.chars().all(sound) {
                Err(NoField::Check)
            } else {
                Ok(Self::Check(name.to_owned()))
            };
        }
        NAMED.iter().find(|(name, _)| *name == word).map(|(_, field)| field.clone()).ok_or(NoField::Unknown)
    }
}

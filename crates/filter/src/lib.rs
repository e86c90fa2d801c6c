//! Which devices are meant: one small language for the API, the command line, the dashboard and deployments.
//!
//! ```
//! use copal_filter::Filter;
//!
//! let filter: Filter = r#"tag.site = paris and not online"#.parse()?;
//! assert_eq!(filter.to_string(), r#"tag.site = "paris" and not online = true"#);
//! # Ok::<(), copal_filter::Error>(())
//! ```
//!
//! In: text of a person, bounded in length, depth and terms. Out: a syntax tree ([`Expr`]), its canonical text, and a judgement
//! of one device ([`Filter::matches`]). Never here: SQL, the network, a clock: how long ago a device was seen is an argument.
//!
//! | file | what it holds |
//! |---|---|
//! | `field` | the fields, and what each can be compared with |
//! | `lex`, `parse` | from text to tree |
//! | `tree` | the tree and its canonical text |
//! | `judge` | the tree and one device: yes or no |
//! | `pattern` | `*` and `?` |
//! | `error` | what is wrong, where, and what was probably meant |
//!
//! **What is not there.** A device without the tag `site` is not one whose site is Paris, nor one whose site is before or like
//! anything: every comparison with what is not there is false. `!=` is the exact opposite of `=`, and so true. Thus `not` always
//! turns a judgement around, and there is no third value as SQL has.

#![forbid(unsafe_code)]

mod error;
mod field;
mod judge;
mod lex;
mod parse;
mod pattern;
mod tree;

pub use error::Error;
pub use field::{Field, Kind, STATES, VERDICTS};
pub use judge::Device;
pub use pattern::Pattern;
pub use tree::{Check, Expr, Order, Test};

/// The most characters of a filter.
pub const MAX_CHARS: usize = 1_000;
/// The most parentheses and `not`s within one another.
pub const MAX_DEPTH: usize = 16;
/// The most comparisons; each value of an `in` list counts as one.
pub const MAX_TERMS: usize = 50;
/// The most characters of one value.
pub const MAX_VALUE: usize = 255;

/// A filter that was read: [`std::str::FromStr`] makes it, [`std::fmt::Display`] writes its canonical text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Expr);

impl Filter {
    /// The tree.
    #[must_use]
    pub const fn expr(&self) -> &Expr {
        &self.0
    }

    /// Whether this device is meant.
    #[must_use]
    pub fn matches(&self, device: &Device<'_>) -> bool {
        judge::judge(&self.0, device)
    }

    /// Whether any comparison is with a field of which this holds.
    #[must_use]
    pub fn any_field(&self, mut holds: impl FnMut(&Field) -> bool) -> bool {
        self.0.any(&mut |test| holds(&test.field))
    }
}

impl From<Expr> for Filter {
    fn from(expr: Expr) -> Self {
        Self(expr)
    }
}

impl std::str::FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse::parse(text).map(Self)
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

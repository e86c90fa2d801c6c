//! The syntax tree, and its canonical text: what it prints reads back as the same tree.

use std::fmt;

use semver::Version;

use crate::{Field, Pattern};

/// A condition on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// All hold; two or more, none of them an `And`.
    And(Vec<Expr>),
    /// One holds at least; two or more, none of them an `Or`.
    Or(Vec<Expr>),
    /// It does not hold.
    Not(Box<Expr>),
    /// One comparison.
    Test(Test),
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Of what.
    pub field: Field,
    /// With what.
    pub check: Check,
}

/// What a field is compared with. The parser gives each field only what its [`crate::Kind`] knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It is this text.
    Equals(String),
    /// It is not this text, or is not there.
    Differs(String),
    /// It is like this.
    Like(Pattern),
    /// It is one of these; one or more.
    In(Vec<String>),
    /// It is a version that stands so to this one.
    Version(Order, Version),
    /// It was so many seconds ago: more, or less.
    Ago(Order, u64),
    /// It is true, or false.
    Is(bool),
    /// It is there.
    There,
}

/// How one thing stands to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `>`
    Above,
    /// `>=`
    AtLeast,
}

impl Order {
    /// Whether things that compare so stand so.
    #[must_use]
    pub fn holds(self, of: std::cmp::Ordering) -> bool {
        match self {
            Self::Below => of.is_lt(),
            Self::AtMost => of.is_le(),
            Self::Above => of.is_gt(),
            Self::AtLeast => of.is_ge(),
        }
    }

    /// The sign.
    #[must_use]
    pub const fn sign(self) -> &'static str {
        match self {
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Above => ">",
            Self::AtLeast => ">=",
        }
    }
}

impl Expr {
    /// All of these; one alone is itself.
    #[must_use]
    pub fn all(parts: Vec<Self>) -> Self {
        Self::joined(parts, Self::And, |part| match part {
            Self::And(inner) => Ok(inner),
            other => Err(other),
        })
    }

    /// Any of these; one alone is itself.
    #[must_use]
    pub fn any_of(parts: Vec<Self>) -> Self {
        Self::joined(parts, Self::Or, |part| match part {
            Self::Or(inner) => Ok(inner),
            other => Err(other),
        })
    }

    fn joined(
        parts: Vec<Self>,
        join: fn(Vec<Self>) -> Self,
        open: fn(Self) -> Result<Vec<Self>, Self>,
    ) -> Self {
        let mut flat = Vec::with_capacity(parts.len());
        for part in parts {
            match open(part) {
                Ok(inner) => flat.extend(inner),
                Err(other) => flat.push(other),
            }
        }
        match (flat.len(), flat.pop()) {
            (1, Some(one)) => one,
            (_, last) => {
                flat.extend(last);
                join(flat)
            }
        }
    }

    /// Whether any comparison in it is so.
    pub(crate) fn any(&self, holds: &mut impl FnMut(&Test) -> bool) -> bool {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().any(|part| part.any(holds)),
            Self::Not(inner) => inner.any(holds),
            Self::Test(test) => holds(test),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, word) = match self {
            Self::And(parts) => (parts, "and"),
            Self::Or(parts) => (parts, "or"),
            Self::Not(inner) => {
                return match **inner {
                    Self::And(_) | Self::Or(_) => write!(f, "not ({inner})"),
                    Self::Not(_) | Self::Test(_) => write!(f, "not {inner}"),
                };
            }
            Self::Test(test) => return test.fmt(f),
        };
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                write!(f, " {word} ")?;
            }
            // `and` binds closer than `or`; the rest needs no parentheses.
            match part {
                Self::Or(_) if word == "and" => write!(f, "({part})")?,
                other => other.fmt(f)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = &self.field;
        match &self.check {
            Check::Equals(text) => write!(f, "{field} = {}", Quoted(text)),
            Check::Differs(text) => write!(f, "{field} != {}", Quoted(text)),
            Check::Like(pattern) => write!(f, "{field} ~ {}", Quoted(pattern.as_str())),
            Check::In(values) => {
                write!(f, "{field} in (")?;
                for (i, value) in values.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{}", Quoted(value))?;
                }
                f.write_str(")")
            }
            Check::Version(order, version) => write!(f, "{field} {} \"{version}\"", order.sign()),
            Check::Ago(order, seconds) => write!(f, "{field} {} {}", order.sign(), Span(*seconds)),
            Check::Is(flag) => write!(f, "{field} = {flag}"),
            Check::There => write!(f, "has {field}"),
        }
    }
}

/// Text in quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

/// The units of a time span, the longest first.
pub(crate) const UNITS: &[(char, u64)] = &[('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Seconds in the longest unit that leaves none over.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, seconds) = match UNITS.iter().find(|(_, s)| self.0 > 0 && self.0.is_multiple_of(*s)) {
            Some(found) => *found,
            None => ('s', 1),
        };
        write!(f, "{}{unit}", self.0 / seconds)
    }
}

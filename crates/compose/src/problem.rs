//! What is wrong with a project, said so that its author can put it right.

use std::fmt;

use serde::Serialize;

use crate::tree::Node;

/// How many problems are collected before the rest is left unsaid.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong, where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, as the caller named it.
    pub file: String,
    /// From 1; 0 where it concerns the file as a whole.
    pub line: u64,
    /// From 1, in characters; 0 where it concerns the file as a whole.
    pub column: u64,
    /// The key, such as `services.web.ports[0]`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do; empty where the message says it.
    pub fix: String,
    /// Stable word for programs: one of [`code`], or an `E_POLICY_*` of the device protocol.
    pub code: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.fix.is_empty() {
            write!(f, " (do: {})", self.fix)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// The stable words of [`Problem::code`].
pub mod code {
    /// The text is not YAML.
    pub const YAML: &str = "compose_yaml";
    /// Larger, deeper or more repetitive than any real project.
    pub const LIMIT: &str = "compose_limit";
    /// A key stands twice in one map.
    pub const DUPLICATE_KEY: &str = "compose_duplicate_key";
    /// A key that compose does not have.
    pub const UNKNOWN_KEY: &str = "compose_unknown_key";
    /// A key or value that compose has and a device cannot honour.
    pub const UNSUPPORTED: &str = "compose_unsupported";
    /// A value of the wrong kind or out of range.
    pub const INVALID: &str = "compose_invalid";
    /// Something that must be there is not.
    pub const MISSING: &str = "compose_missing";
    /// A name that refers to nothing.
    pub const UNKNOWN_REFERENCE: &str = "compose_unknown_reference";
    /// Services that wait for one another.
    pub const CYCLE: &str = "compose_cycle";
    /// Two things that exclude each other.
    pub const CONFLICT: &str = "compose_conflict";
    /// An interpolated variable that has no value.
    pub const UNSET_VARIABLE: &str = "compose_unset_variable";
    /// A file the project names cannot be read.
    pub const FILE: &str = "compose_file";
    /// Something said that changes nothing (warnings only).
    pub const NO_EFFECT: &str = "compose_no_effect";
    /// Something that works and is probably not meant (warnings only).
    pub const DOUBTFUL: &str = "compose_doubtful";
}

/// Collects problems and warnings of one file.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub file: String,
    pub list: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Problems {
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), ..Self::default() }
    }

    /// Records a problem at a node. Of several kinds at one place the first counts: what follows from it (a variable
    /// without a value, then an image without a name) would only confuse.
    pub fn at(
        &mut self,
        node: &Node,
        code: &'static str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let problem = self.make((node.line, node.column), node.path.to_string(), code, message, fix);
        let follows = self.list.iter().any(|earlier| {
            (earlier.line, earlier.column, &earlier.path) == (problem.line, problem.column, &problem.path)
                && earlier.code != code
        });
        if !follows {
            self.push(problem);
        }
    }

    /// Records a problem of the file as a whole.
    pub fn whole(&mut self, code: &'static str, message: impl Into<String>, fix: impl Into<String>) {
        let problem = self.make((0, 0), String::new(), code, message, fix);
        self.push(problem);
    }

    pub fn warn(
        &mut self,
        node: &Node,
        code: &'static str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        if self.warnings.len() < MAX_PROBLEMS {
            let warning = self.make((node.line, node.column), node.path.to_string(), code, message, fix);
            self.warnings.push(warning);
        }
    }

    pub fn push(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        }
    }

    pub fn make(
        &self,
        (line, column): (u64, u64),
        path: String,
        code: &'static str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.file.clone(),
            line,
            column,
            path,
            message: inert(&message.into()),
            fix: inert(&fix.into()),
            code,
        }
    }

    /// Sorted by place, each once.
    pub fn finish(mut self) -> (Vec<Problem>, Vec<Problem>) {
        for list in [&mut self.list, &mut self.warnings] {
            list.sort_by(|a, b| (a.line, a.column, a).cmp(&(b.line, b.column, b)));
            list.dedup();
        }
        (self.list, self.warnings)
    }
}

/// Text that cannot steer the terminal or page it is shown on: control characters and those that turn the direction
/// of writing are spelled out.
pub(crate) fn inert(text: &str) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(steers) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_steer_a_terminal() {
        let text = inert("a\u{1b}]0;x\u{7}b\nc\u{202e}d é");
        assert_eq!(text, "a\\u{1b}]0;x\\u{7}b\\nc\\u{202e}d é");
    }
}

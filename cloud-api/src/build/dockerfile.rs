//! Dockerfiles, read as far as needed: which instruction stands on which line, where stages begin. The builder itself
//! says only "Step 3/7"; whoever pushed wants file and line.
//!
//! After each `FROM` a `LABEL` of ours is put in, for two reasons. The engine's cache of 20.10 does not tell platforms
//! apart below `FROM scratch`: an amd64 build would get the arm64 image of the same files. And what a build leaves
//! behind is only cleaned up when it carries our label.

/// The labels' names.
pub(super) const LABEL_BUILDER: &str = "io.copal.build";
const LABEL_PLATFORM: &str = "io.copal.platform";

/// One instruction as it stood in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Where it begins, from 1.
    pub(super) line: usize,
    /// In capitals.
    pub(super) keyword: String,
    /// All of it, on one line.
    pub(super) text: String,
    /// Put in by us.
    pub(super) ours: bool,
}

/// A Dockerfile ready for the builder.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What is sent.
    pub(super) text: String,
    /// In the order of the builder's steps.
    pub(super) steps: Vec<Instruction>,
    /// For each line that is sent, the line it came from.
    lines: Vec<usize>,
}

impl Prepared {
    /// Whether something runs during the build, so that the builder must be able to run the platform's programs.
    pub(super) fn runs(&self) -> bool {
        self.steps.iter().any(|s| s.keyword == "RUN")
    }

    /// The line in the file that a line of the sent text came from.
    pub(super) fn line(&self, sent: usize) -> usize {
        self.lines.get(sent.wrapping_sub(1)).copied().unwrap_or(sent)
    }
}

/// Reads a Dockerfile and puts the labels in.
pub(super) fn prepare(text: &str, builder: &str, platform: &str) -> Prepared {
    let label = format!("LABEL {LABEL_BUILDER}={builder} {LABEL_PLATFORM}={platform}");
    let escape = escape(text);
    let mut out = Prepared { text: String::new(), steps: Vec::new(), lines: Vec::new() };
    let mut open: Option<Instruction> = None;
    for (index, raw) in text.lines().enumerate() {
        let number = index + 1;
        out.text.push_str(raw);
        out.text.push('\n');
        out.lines.push(number);
        let line = raw.trim();
        // Comments and empty lines may stand within an instruction; they neither end nor continue it.
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let continued = line.ends_with(escape);
        let part = line.strip_suffix(escape).unwrap_or(line).trim_end();
        match &mut open {
            Some(instruction) => {
                instruction.text.push(' ');
                instruction.text.push_str(part);
            }
            None => {
                let keyword = part.split_whitespace().next().unwrap_or("").to_ascii_uppercase();
                open = Some(Instruction { line: number, keyword, text: part.to_owned(), ours: false });
            }
        }
        if continued {
            continue;
        }
        let Some(instruction) = open.take() else { continue };
        let from = instruction.keyword == "FROM";
        out.steps.push(instruction);
        if from {
            out.text.push_str(&label);
            out.text.push('\n');
            out.lines.push(number);
            out.steps.push(Instruction {
                line: number,
                keyword: "LABEL".into(),
                text: label.clone(),
                ours: true,
            });
        }
    }
    out.steps.extend(open);
    out
}

/// The escape character: the backslash, unless a directive at the very top says otherwise.
fn escape(text: &str) -> char {
    for line in text.lines() {
        let Some(directive) = line.trim().strip_prefix('#') else { break };
        let Some((name, value)) = directive.split_once('=') else { break };
        if name.trim().eq_ignore_ascii_case("escape") && value.trim() == "`" {
            return '`';
        }
    }
    '\\'
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# a file\nARG V=1\nFROM scratch AS base\nCOPY a \\\n  # why\n\n  b /\nfrom base\nRUN x \\\n && y\n";

    #[test]
    fn steps_know_their_lines_and_stages_carry_our_labels() {
        let p = prepare(TEXT, "b1", "linux/arm64");
        let steps: Vec<_> = p.steps.iter().map(|s| (s.line, s.text.as_str(), s.ours)).collect();
        let label = "LABEL io.copal.build=b1 io.copal.platform=linux/arm64";
        assert_eq!(
            steps,
            [
                (2, "ARG V=1", false),
                (3, "FROM scratch AS base", false),
                (3, label, true),
                (4, "COPY a b /", false),
                (8, "from base", false),
                (8, label, true),
                (9, "RUN x && y", false),
            ]
        );
        assert!(p.runs());
        assert_eq!(p.text.matches(label).count(), 2);
        let sent = p.text.lines().position(|l| l == "RUN x \\").unwrap() + 1;
        assert_eq!(p.line(sent), 9);
        assert_eq!(p.line(9999), 9999);
    }

    #[test]
    fn the_escape_directive_is_honoured() {
        let p = prepare("# escape=`\nFROM scratch\nCOPY a `\n b\n", "b", "p");
        assert_eq!(p.steps.last().unwrap().text, "COPY a b");
        assert!(!p.runs());
    }

    proptest::proptest! {
        #[test]
        fn every_text_is_read_without_losing_a_line(text in "[A-Z# \\\\\n]{0,200}") {
            let p = prepare(&text, "b", "p");
            let ours = p.steps.iter().filter(|s| s.ours).count();
            proptest::prop_assert_eq!(p.text.lines().count(), text.lines().count() + ours);
        }
    }
}

//! Dockerfiles, read as far as needed: which instruction stands on which line, where stages begin. The builder itself
//! says only "Step 3/7"; whoever pushed wants file and line.
//!
//! Each stage gets a `LABEL` of ours, since what a build leaves behind is only cleaned up when it carries it. Below
//! `FROM scratch` Docker 20.10 gives an image the builder's architecture as long as nothing was copied into it, and
//! then refuses it as a base of another platform. So a Dockerfile that has no other base is built for the builder's
//! own platform, and the image is said to be of the fleet's when it is stored ([`Prepared::from_nothing`]); where
//! other bases stand beside, the label waits until something was copied.

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
    /// Every stage begins with nothing, so nothing in the image depends on a platform but what was copied in.
    pub(super) only_scratch: bool,
    /// The last stage (or the one built up to) goes back to `FROM scratch`.
    pub(super) from_nothing: bool,
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

/// What stands behind a `FROM`: its base, and what the stage is called.
fn from(text: &str) -> (String, Option<String>) {
    let mut words = text.split_whitespace().skip(1).filter(|w| !w.starts_with("--"));
    let base = words.next().unwrap_or("").to_ascii_lowercase();
    let named = words.next().is_some_and(|w| w.eq_ignore_ascii_case("as"));
    (base, words.next().filter(|_| named).map(str::to_ascii_lowercase))
}

/// Reads a Dockerfile, of which `target` is built (the last stage without), and puts the labels in.
pub(super) fn prepare(text: &str, builder: &str, platform: &str, target: Option<&str>) -> Prepared {
    let read = instructions(text);
    let mut bare: Vec<(Option<String>, bool)> = Vec::new();
    for (instruction, _) in read.iter().filter(|(i, _)| i.keyword == "FROM") {
        let (base, name) = from(&instruction.text);
        let nothing =
            base == "scratch" || bare.iter().any(|(n, bare)| *bare && n.as_deref() == Some(base.as_str()));
        bare.push((name, nothing));
    }
    let wanted = target.map(str::to_ascii_lowercase);
    let from_nothing = bare
        .iter()
        .enumerate()
        .find(|(i, (name, _))| wanted.is_some() && (*name == wanted || Some(i.to_string()) == wanted))
        .map(|(_, stage)| stage)
        .or(bare.last())
        .is_some_and(|(_, nothing)| *nothing);
    let only_scratch = !bare.is_empty() && bare.iter().all(|(_, nothing)| *nothing);
    let label = format!("LABEL {LABEL_BUILDER}={builder} {LABEL_PLATFORM}={platform}");
    let mut out =
        Prepared { text: String::new(), steps: Vec::new(), lines: Vec::new(), only_scratch, from_nothing };
    let mut read = read.into_iter().peekable();
    let mut due = false;
    for (index, raw) in text.lines().enumerate() {
        out.text.push_str(raw);
        out.text.push('\n');
        out.lines.push(index + 1);
        // The instruction that ends with this line, if one does.
        let Some((instruction, _)) = read.next_if(|(_, end)| *end == index + 1) else { continue };
        let now = match instruction.keyword.as_str() {
            "FROM" => {
                let (base, _) = from(&instruction.text);
                due = true;
                only_scratch || base != "scratch"
            }
            "COPY" | "ADD" => due,
            _ => false,
        };
        let line = instruction.line;
        out.steps.push(instruction);
        if due && now {
            due = false;
            out.text.push_str(&label);
            out.text.push('\n');
            out.lines.push(line);
            out.steps.push(Instruction { line, keyword: "LABEL".into(), text: label.clone(), ours: true });
        }
    }
    out.steps.extend(read.map(|(instruction, _)| instruction));
    out
}

/// The instructions, each with the line it ends on.
fn instructions(text: &str) -> Vec<(Instruction, usize)> {
    let escape = escape(text);
    let mut out = Vec::new();
    let mut open: Option<Instruction> = None;
    for (index, raw) in text.lines().enumerate() {
        let line = raw.trim();
        // Comments and empty lines may stand within an instruction; they neither end nor continue it.
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let last = index + 1;
        let continued = line.ends_with(escape);
        let part = line.strip_suffix(escape).unwrap_or(line).trim_end();
        match &mut open {
            Some(instruction) => {
                instruction.text.push(' ');
                instruction.text.push_str(part);
            }
            None => {
                let keyword = part.split_whitespace().next().unwrap_or("").to_ascii_uppercase();
                open = Some(Instruction { line: last, keyword, text: part.to_owned(), ours: false });
            }
        }
        if !continued {
            out.extend(open.take().map(|instruction| (instruction, last)));
        }
    }
    // Cut off in a continuation: nothing ends there, so no label follows.
    out.extend(open.map(|instruction| (instruction, usize::MAX)));
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
        let p = prepare(TEXT, "b1", "linux/arm64", None);
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
    fn stages_from_nothing_are_known() {
        let read = |text: &str, target| {
            let p = prepare(text, "b", "p", target);
            let after: Vec<&str> =
                p.steps.windows(2).filter(|w| w[1].ours).map(|w| w[0].keyword.as_str()).collect();
            (p.only_scratch, p.from_nothing, after.join(" "))
        };
        let mixed = "FROM golang AS build\nRUN x\nFROM scratch AS out\nENV A=1\nCOPY --from=build a /\nFROM out\nCMD x\n";
        assert_eq!(read(mixed, None), (false, true, "FROM COPY FROM".to_owned()));
        assert_eq!(read(mixed, Some("build")), (false, false, "FROM COPY FROM".to_owned()));
        assert_eq!(
            read("FROM --platform=linux/arm64 scratch\nENV A=1\n", None),
            (true, true, "FROM".to_owned())
        );
        assert_eq!(read("FROM ${BASE}\nENV A=1\n", None), (false, false, "FROM".to_owned()));
        assert_eq!(read("", None), (false, false, String::new()));
    }

    #[test]
    fn the_escape_directive_is_honoured() {
        let p = prepare("# escape=`\nFROM scratch\nCOPY a `\n b\n", "b", "p", None);
        assert_eq!(p.steps.last().unwrap().text, "COPY a b");
        assert!(!p.runs());
    }

    proptest::proptest! {
        #[test]
        fn every_text_is_read_without_losing_a_line(text in "[A-Z# \\\\\n]{0,200}") {
            let p = prepare(&text, "b", "p", None);
            let ours = p.steps.iter().filter(|s| s.ours).count();
            proptest::prop_assert_eq!(p.text.lines().count(), text.lines().count() + ours);
        }
    }
}

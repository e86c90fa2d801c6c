//! From text to tokens, each with its column.

use crate::{Error, MAX_CHARS, MAX_VALUE, Order, error::quoted};

/// A token and the column it begins at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) column: usize,
    pub(crate) what: What,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A field, a word of the grammar, or a value without quotes.
    Word(String),
    /// A value in quotes.
    Text(String),
    Equals,
    Differs,
    Like,
    Order(Order),
    Open,
    Close,
    Comma,
    End,
}

impl What {
    /// How a message names it.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Word(word) => quoted(word),
            Self::Text(text) => format!("the text {}", quoted(text)),
            Self::Equals => "=".to_owned(),
            Self::Differs => "!=".to_owned(),
            Self::Like => "~".to_owned(),
            Self::Order(order) => order.sign().to_owned(),
            Self::Open => "(".to_owned(),
            Self::Close => ")".to_owned(),
            Self::Comma => "a comma".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }

    /// Whether it is this word of the grammar, in any case.
    pub(crate) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w.eq_ignore_ascii_case(word))
    }
}

/// What ends a word.
fn is_sign(c: char) -> bool {
    matches!(c, '=' | '!' | '<' | '>' | '~' | '(' | ')' | ',' | '"' | '\'')
}

/// Reads the whole text; the last token is the end.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, Error> {
    let chars: Vec<char> = text.chars().take(MAX_CHARS + 1).collect();
    if chars.len() > MAX_CHARS {
        return Err(Error::at(MAX_CHARS, format!("a filter has at most {MAX_CHARS} characters")));
    }
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        if c.is_whitespace() {
            at += 1;
            continue;
        }
        let column = at + 1;
        let followed = chars.get(at + 1) == Some(&'=');
        let (what, taken) = match c {
            '(' => (What::Open, 1),
            ')' => (What::Close, 1),
            ',' => (What::Comma, 1),
            '~' => (What::Like, 1),
            '=' if followed => return Err(Error::at(column, "expected a single =")),
            '=' => (What::Equals, 1),
            '!' if followed => (What::Differs, 2),
            '!' => {
                return Err(Error::at(
                    column,
                    "expected != here; the opposite of a condition is written `not …`",
                ));
            }
            '<' if followed => (What::Order(Order::AtMost), 2),
            '<' => (What::Order(Order::Below), 1),
            '>' if followed => (What::Order(Order::AtLeast), 2),
            '>' => (What::Order(Order::Above), 1),
            '"' | '\'' => in_quotes(&chars, at)?,
            c if c.is_control() => return Err(Error::at(column, "a control character has no place here")),
            _ => {
                let rest = &chars[at..];
                let end = rest.iter().position(|c| c.is_whitespace() || c.is_control() || is_sign(*c));
                let word: String = rest[..end.unwrap_or(rest.len())].iter().collect();
                let taken = end.unwrap_or(rest.len());
                check_value(column, &word)?;
                (What::Word(word), taken)
            }
        };
        out.push(Token { column, what });
        at += taken;
    }
    out.push(Token { column: chars.len() + 1, what: What::End });
    Ok(out)
}

/// A value in quotes of either sort; within, `\` stands before a quote or another `\`.
fn in_quotes(chars: &[char], at: usize) -> Result<(What, usize), Error> {
    let quote = chars[at];
    let mut text = String::new();
    let mut i = at + 1;
    loop {
        match chars.get(i) {
            None => {
                return Err(Error::at(at + 1, format!("expected {quote} at the end of the text begun here")));
            }
            Some(c) if *c == quote => break,
            Some('\\') => match chars.get(i + 1) {
                Some(c @ ('"' | '\'' | '\\')) => {
                    text.push(*c);
                    i += 1;
                }
                _ => return Err(Error::at(i + 1, "expected a quote or \\ after \\; write \\\\ for one \\")),
            },
            Some(c) if c.is_control() => {
                return Err(Error::at(i + 1, "a control character has no place here"));
            }
            Some(c) => text.push(*c),
        }
        i += 1;
    }
    check_value(at + 1, &text)?;
    Ok((What::Text(text), i + 1 - at))
}

fn check_value(column: usize, text: &str) -> Result<(), Error> {
    if text.chars().count() > MAX_VALUE {
        return Err(Error::at(column, format!("a value has at most {MAX_VALUE} characters")));
    }
    Ok(())
}

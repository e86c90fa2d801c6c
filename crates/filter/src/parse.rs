//! From tokens to the tree:
//!
//! ```text
//! either    = both { "or" both }
//! both      = condition { "and" condition }
//! condition = "not" condition | "(" either ")" | "has" field | field [ comparison ]
//! ```

use semver::Version;

use crate::{
    Check, Error, Expr, Field, Kind, MAX_DEPTH, MAX_TERMS, Pattern, Test,
    error::{nearest, quoted},
    field::{NAMED, NoField},
    lex::{self, Token, What},
    tree::UNITS,
};

/// Words of the grammar; as a value they stand in quotes.
const WORDS: &[&str] = &["and", "or", "not", "in", "has"];

/// The longest time span, in seconds: ten years.
const MAX_SPAN: u64 = 3_653 * 86_400;

pub(crate) fn parse(text: &str) -> Result<Expr, Error> {
    let mut parser = Parser { tokens: lex::tokens(text)?, at: 0, depth: 0, terms: 0 };
    if parser.peek().what == What::End {
        return Err(Error::at(1, "expected a condition, such as tag.site = paris or online = false"));
    }
    let expr = parser.either()?;
    let token = parser.peek();
    match &token.what {
        What::End => Ok(expr),
        What::Close => Err(Error::at(token.column, "there is no ( for this )")),
        other => {
            Err(Error::at(token.column, format!("expected `and`, `or` or the end, found {}", other.told())))
        }
    }
}

/// A version as people write it: `1.2.0`, and also `v1.2.0`, `1.2`, `1`.
pub(crate) fn version(text: &str) -> Option<Version> {
    let digits = |t: &str| t.starts_with(|c: char| c.is_ascii_digit());
    let text = text.strip_prefix('v').filter(|t| digits(t)).unwrap_or(text);
    let (core, rest) = match text.find(['-', '+']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    match core.split('.').count() {
        1 => Version::parse(&format!("{core}.0.0{rest}")).ok(),
        2 => Version::parse(&format!("{core}.0{rest}")).ok(),
        _ => Version::parse(text).ok(),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    terms: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        // The end is never passed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn takes(&mut self, word: &str) -> bool {
        let found = self.peek().what.is(word);
        if found {
            self.next();
        }
        found
    }

    fn deeper<T>(
        &mut self,
        column: usize,
        inner: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            let message = format!("at most {MAX_DEPTH} parentheses and `not`s stand within one another");
            return Err(Error::at(column, message));
        }
        self.depth += 1;
        let out = inner(self);
        self.depth -= 1;
        out
    }

    fn term(&mut self, column: usize) -> Result<(), Error> {
        self.terms += 1;
        if self.terms > MAX_TERMS {
            return Err(Error::at(
                column,
                format!("a filter has at most {MAX_TERMS} terms, values of lists included"),
            ));
        }
        Ok(())
    }

    fn either(&mut self) -> Result<Expr, Error> {
        let mut parts = vec![self.both()?];
        while self.takes("or") {
            parts.push(self.both()?);
        }
        Ok(Expr::any_of(parts))
    }

    fn both(&mut self) -> Result<Expr, Error> {
        let mut parts = vec![self.condition()?];
        while self.takes("and") {
            parts.push(self.condition()?);
        }
        Ok(Expr::all(parts))
    }

    fn condition(&mut self) -> Result<Expr, Error> {
        let token = self.next();
        match &token.what {
            What::Open => {
                let inner = self.deeper(token.column, Self::either)?;
                let close = self.next();
                match close.what {
                    What::Close => Ok(inner),
                    other => {
                        let of = format!("for the ( at column {}", token.column);
                        let message = format!("expected `and`, `or` or ) {of}, found {}", other.told());
                        Err(Error::at(close.column, message))
                    }
                }
            }
            word if word.is("not") => {
                let inner = self.deeper(token.column, Self::condition)?;
                Ok(Expr::Not(Box::new(inner)))
            }
            word if word.is("has") => {
                let token = self.next();
                let field = field(&token)?;
                if !field.may_be_absent() {
                    let message =
                        format!("every device has {field}: `has` is for tags and for what may be missing");
                    return Err(Error::at(token.column, message));
                }
                self.term(token.column)?;
                Ok(Expr::Test(Test { field, check: Check::There }))
            }
            _ => self.comparison(&token),
        }
    }

    fn comparison(&mut self, token: &Token) -> Result<Expr, Error> {
        let field = field(token)?;
        self.term(token.column)?;
        let sign = self.peek().clone();
        let check = match (&sign.what, field.kind()) {
            (What::Equals | What::Differs, _) => {
                self.next();
                self.equality(&field, sign.what == What::Equals)?
            }
            (What::Like, Kind::Text | Kind::Version) => {
                self.next();
                let (column, text) = self.value(&field, "~")?;
                Check::Like(
                    Pattern::new(&text).ok_or_else(|| Error::at(column, "a pattern has at most 8 of `*`"))?,
                )
            }
            (What::Order(order), Kind::Version) => {
                self.next();
                let (column, text) = self.value(&field, order.sign())?;
                let version = version(&text).ok_or_else(|| {
                    Error::at(column, format!("expected a version such as 1.2.0, found {}", quoted(&text)))
                })?;
                Check::Version(*order, version)
            }
            (What::Order(order), Kind::Ago) => {
                self.next();
                let (column, text) = self.value(&field, order.sign())?;
                Check::Ago(*order, span(column, &text)?)
            }
            (word, Kind::Text | Kind::Version) if word.is("in") => {
                self.next();
                self.list(&field)?
            }
            (_, Kind::Flag) if !is_comparison(&sign.what) => Check::Is(true),
            (found, kind) => {
                let expected = match kind {
                    Kind::Text => "=, !=, ~ or in",
                    Kind::Version => "=, !=, <, <=, >, >=, ~ or in",
                    Kind::Flag => "= or !=, or nothing,",
                    Kind::Ago => "<, <=, > or >=",
                };
                let message = format!("expected {expected} after {field}, found {}", found.told());
                return Err(Error::at(sign.column, message));
            }
        };
        Ok(Expr::Test(Test { field, check }))
    }

    fn equality(&mut self, field: &Field, equal: bool) -> Result<Check, Error> {
        let sign = if equal { "=" } else { "!=" };
        let (column, text) = self.value(field, sign)?;
        match field.kind() {
            Kind::Flag => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" => Ok(Check::Is(equal)),
                "false" | "no" => Ok(Check::Is(!equal)),
                _ => {
                    let message = format!("expected true or false for {field}, found {}", quoted(&text));
                    Err(Error::at(column, message))
                }
            },
            Kind::Ago => {
                let message = format!("{field} is never exactly so long ago: compare it with < or >");
                Err(Error::at(column, message))
            }
            Kind::Text | Kind::Version => {
                known_word(field, column, &text)?;
                Ok(if equal { Check::Equals(text) } else { Check::Differs(text) })
            }
        }
    }

    fn list(&mut self, field: &Field) -> Result<Check, Error> {
        let open = self.next();
        if open.what != What::Open {
            let message = format!("expected ( after in, as in {field} in (a, b), found {}", open.what.told());
            return Err(Error::at(open.column, message));
        }
        let mut values = Vec::new();
        loop {
            let (column, text) = self.value(field, if values.is_empty() { "(" } else { "the comma" })?;
            known_word(field, column, &text)?;
            if !values.is_empty() {
                self.term(column)?;
            }
            values.push(text);
            let token = self.next();
            match token.what {
                What::Comma => {}
                What::Close => return Ok(Check::In(values)),
                other => {
                    let message = format!("expected a comma or ) in the list, found {}", other.told());
                    return Err(Error::at(token.column, message));
                }
            }
        }
    }

    /// A value, in quotes or not, and its column.
    fn value(&mut self, field: &Field, after: &str) -> Result<(usize, String), Error> {
        let token = self.next();
        match token.what {
            What::Text(text) => Ok((token.column, text)),
            What::Word(word) if WORDS.iter().any(|w| word.eq_ignore_ascii_case(w)) => {
                let message = format!(
                    "expected a value for {field} after {after}, found {word}; as a value it stands in quotes"
                );
                Err(Error::at(token.column, message))
            }
            What::Word(word) => Ok((token.column, word)),
            other => {
                let message = format!("expected a value for {field} after {after}, found {}", other.told());
                Err(Error::at(token.column, message))
            }
        }
    }
}

fn is_comparison(what: &What) -> bool {
    matches!(what, What::Equals | What::Differs | What::Like | What::Order(_)) || what.is("in")
}

/// The field a token names.
fn field(token: &Token) -> Result<Field, Error> {
    let at = |message: String| Error::at(token.column, message);
    let word = match &token.what {
        What::Word(word) if !WORDS.iter().any(|w| word.eq_ignore_ascii_case(w)) => word,
        What::Text(_) => {
            return Err(at(format!(
                "expected a field, found {}: a value stands right of its field",
                token.what.told()
            )));
        }
        other => return Err(at(format!("expected a field, `not`, `has` or (, found {}", other.told()))),
    };
    Field::named(word).map_err(|why| match why {
        NoField::Key => at(format!(
            "{} names no tag: after `tag.` stand 1 to 63 letters, digits, `_`, `.`, `-` and `/`",
            quoted(word)
        )),
        NoField::Check => at(format!(
            "{} names no health check: after `check.` stand 1 to 32 of a-z, 0-9 and `_`, as in check.disk",
            quoted(word)
        )),
        NoField::Unknown => {
            let names = NAMED.iter().map(|(name, _)| *name);
            let tag =
                word.split_once('.').filter(|(before, _)| nearest(before, ["tag"].into_iter()).is_some());
            let hint = match nearest(word, names.clone().chain(["tag"])) {
                None if tag.is_some() => format!("Did you mean tag.{}?", tag.map_or("", |(_, key)| key)),
                Some("tag") => "A tag is written tag.site.".to_owned(),
                Some(meant) => format!("Did you mean {meant}?"),
                None => format!(
                    "There are {}, check.<name> and tag.<key>; a tag is written tag.site.",
                    names.collect::<Vec<_>>().join(", ")
                ),
            };
            at(format!("there is no field {}. {hint}", quoted(word)))
        }
    })
}

/// Refuses a value that the field never has.
fn known_word(field: &Field, column: usize, text: &str) -> Result<(), Error> {
    let Some(words) = field.words() else { return Ok(()) };
    if words.contains(&text) {
        return Ok(());
    }
    let hint =
        nearest(text, words.iter().copied()).map(|w| format!(" Did you mean {w}?")).unwrap_or_default();
    let message = format!("{field} is never {}; it is one of {}.{hint}", quoted(text), words.join(", "));
    Err(Error::at(column, message))
}

/// Seconds of a time span such as `90s` or `2h`.
fn span(column: usize, text: &str) -> Result<u64, Error> {
    let wrong = || {
        let message = format!("expected a time span such as 90s, 30m, 2h, 7d or 4w, found {}", quoted(text));
        Error::at(column, message)
    };
    let unit = text.chars().last().ok_or_else(wrong)?;
    let (_, seconds) = UNITS.iter().find(|(sign, _)| *sign == unit).ok_or_else(wrong)?;
    let number = &text[..text.len() - unit.len_utf8()];
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*seconds))
        .filter(|s| *s <= MAX_SPAN)
        .ok_or_else(|| Error::at(column, "a time span is at most ten years"))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;

//! Text from outside, made safe to show: a log line or a name is foreign input that ends on terminals and pages.

/// The text without what steers a terminal or misleads a reader: escape sequences are taken out whole, as are other
/// control characters, zero-width characters and marks that turn the direction of writing. Line ends and tabs stay.
/// Escaping for HTML or JSON is the writer's part.
#[must_use]
pub fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // A control sequence ends with a byte from @ to ~; what comes between is its parameters.
            '\u{1b}' if rest.next_if_eq(&'[').is_some() => {
                while rest.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
                rest.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
            }
            // An operating system command ends with BEL or ESC \. One that does not end takes the line, no more.
            '\u{1b}' if rest.next_if_eq(&']').is_some() => {
                while rest.next_if(|c| !matches!(c, '\u{7}' | '\u{1b}' | '\n')).is_some() {}
                if rest.next_if_eq(&'\u{1b}').is_some() {
                    rest.next_if_eq(&'\\');
                }
            }
            '\n' | '\t' => out.push(c),
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// One line of at most so many characters, with nothing in it that steers.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let safe = inert(text).replace(['\n', '\t'], " ");
    let safe = safe.trim();
    if safe.chars().count() <= most {
        return safe.to_owned();
    }
    let cut: String = safe.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", cut.trim_end())
}

#[cfg(test)]
mod tests {
    use super::inert;

    #[test]
    fn escape_sequences_and_direction_marks_are_taken_out() {
        assert_eq!(inert("\u{1b}[31mred\u{1b}[0m\ttab\r\nnext"), "red\ttab\nnext");
        assert_eq!(inert("a\u{1b}]0;title\u{7}b\u{1b}]8;;x\u{1b}\\c"), "abc");
        assert_eq!(inert("never ends \u{1b}]0;abc\nnext"), "never ends \nnext");
        assert_eq!(inert("exe\u{202e}gpj.txt"), "exegpj.txt");
        assert_eq!(inert("plain é ✓"), "plain é ✓");
        assert_eq!(inert("\u{1b}["), "");
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_steers_is_left(text: String) {
            let out = inert(&text);
            proptest::prop_assert!(!out.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
            proptest::prop_assert_eq!(inert(&out), out);
        }
    }
}

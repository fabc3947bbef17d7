//! Running text from facts files: paragraphs, with `code` between backticks.

use serde::Serialize;

/// Text as paragraphs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Prose(pub Vec<Line>);

/// Text without paragraph breaks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Line(Vec<Span>);

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Span {
    text: String,
    code: bool,
}

impl Prose {
    /// Splits at empty lines.
    pub fn of(text: &str) -> Self {
        let mut paragraphs = vec![String::new()];
        for line in text.lines().map(str::trim) {
            match paragraphs.last_mut() {
                Some(last) if line.is_empty() && !last.is_empty() => paragraphs.push(String::new()),
                Some(last) if !line.is_empty() => {
                    if !last.is_empty() {
                        last.push(' ');
                    }
                    last.push_str(line);
                }
                _ => {}
            }
        }
        paragraphs.retain(|p| !p.is_empty());
        Self(paragraphs.iter().map(|p| Line::of(p)).collect())
    }
}

impl Line {
    /// Splits at backticks; an unpaired backtick stays one.
    pub fn of(text: &str) -> Self {
        let mut spans = Vec::new();
        let mut rest = text.trim();
        let mut push = |text: &str, code| {
            if !text.is_empty() {
                spans.push(Span { text: text.to_owned(), code });
            }
        };
        while let Some((before, after)) = rest.split_once('`') {
            let Some((code, tail)) = after.split_once('`') else { break };
            push(before, false);
            push(code, true);
            rest = tail;
        }
        push(rest, false);
        Self(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_code() {
        let p = Prose::of("One `r = 1`\ncontrol.\n\n\nTwo ` alone.");
        assert_eq!(p.0.len(), 2);
        assert_eq!(p.0[0].0.len(), 3);
        assert!(p.0[0].0[1].code);
        assert_eq!(p.0[1].0[0].text, "Two ` alone.");
        assert_eq!(Prose::of("  "), Prose::default());
    }
}

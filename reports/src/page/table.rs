//! Tables as rows of cells.

use serde::Serialize;

use super::badge::Badge;
use crate::caption::Caption;
use crate::prose::Line;

/// A table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    /// Number and title; nothing for a table within a collapsible, which has a summary.
    pub caption: Option<Caption>,
    /// Name for screen readers where there is no caption.
    pub name: String,
    /// Head rows.
    pub head: Vec<Vec<Cell>>,
    /// Body rows.
    pub rows: Vec<Vec<Cell>>,
    /// Footnotes.
    pub notes: Vec<Line>,
}

/// A cell.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Cell {
    /// Its text.
    pub text: String,
    /// CSS classes: `num`, `unknown`, `missing`, `code`, `group`.
    pub class: &'static str,
    /// Half width of an interval, shown as ± with the same width in every row of the column.
    pub plus_minus: Option<String>,
    /// A smaller second line.
    pub note: Option<String>,
    /// Full form of an abbreviated text.
    pub title: Option<String>,
    /// Text only screen readers get, e.g. what `?` means.
    pub spoken: Option<&'static str>,
    /// Best value of its column.
    pub best: bool,
    /// Differs from the baseline.
    pub changed: bool,
    /// A verdict.
    pub badge: Option<Badge>,
    /// Heads a row (`row`) or column (`col`, `colgroup`).
    pub scope: Option<&'static str>,
    /// Columns it spans.
    pub span: usize,
    /// Colour and dash pattern of the series it names.
    pub style: Option<usize>,
}

impl Cell {
    /// Plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), span: 1, ..Self::default() }
    }

    /// A number.
    pub fn number(text: impl Into<String>) -> Self {
        Self { class: "num", ..Self::text(text) }
    }

    /// Something for a fixed-width font.
    pub fn code(text: impl Into<String>) -> Self {
        Self { class: "code", ..Self::text(text) }
    }

    /// A number the paper has and we could not obtain.
    pub fn unknown() -> Self {
        Self {
            class: "num unknown",
            title: Some("not obtained".to_owned()),
            spoken: Some("not obtained"),
            ..Self::text("?")
        }
    }

    /// No such number in the paper.
    pub fn absent() -> Self {
        Self { class: "num missing", spoken: Some("no value"), ..Self::text("—") }
    }

    /// Something that has not run, or is missing for another reason.
    pub fn missing(why: impl Into<String>) -> Self {
        Self { class: "num missing", ..Self::text(why) }
    }

    /// Column head over numbers.
    pub fn number_head(text: impl Into<String>) -> Self {
        Self { class: "num", scope: Some("col"), ..Self::text(text) }
    }

    /// Column head over text.
    pub fn head(text: impl Into<String>) -> Self {
        Self { scope: Some("col"), ..Self::text(text) }
    }

    /// Head of several columns.
    pub fn group(text: impl Into<String>, span: usize) -> Self {
        Self { class: "group", scope: Some("colgroup"), span, ..Self::text(text) }
    }

    /// An empty corner of the head.
    pub fn corner() -> Self {
        Self::text("")
    }

    /// Head of a row.
    pub fn row(text: impl Into<String>) -> Self {
        Self { scope: Some("row"), ..Self::text(text) }
    }

    /// With a second line.
    pub fn noted(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// With its full form.
    pub fn titled(self, title: impl Into<String>) -> Self {
        Self { title: Some(title.into()), ..self }
    }

    /// With a series' line sample.
    pub fn styled(self, style: usize) -> Self {
        Self { style: Some(style), ..self }
    }
}

impl From<Badge> for Cell {
    fn from(badge: Badge) -> Self {
        Self { badge: Some(badge), ..Self::text("") }
    }
}

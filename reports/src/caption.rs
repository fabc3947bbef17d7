//! Numbers of tables and figures within a page.

use serde::Serialize;

use crate::anchor::Anchors;
use crate::prose::Line;

/// Counts a page's tables and figures, and keeps its anchors.
#[derive(Default)]
pub(crate) struct Captions {
    tables: usize,
    figures: usize,
    /// Every anchor of the page.
    pub anchors: Anchors,
}

/// A numbered caption.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Caption {
    /// Anchor of the table or figure.
    pub id: String,
    /// `Table 1`.
    pub label: String,
    /// What it shows.
    pub text: Line,
}

impl Captions {
    /// The next table's.
    pub fn table(&mut self, text: &str) -> Caption {
        self.tables += 1;
        self.numbered("Table", self.tables, text)
    }

    /// The next figure's.
    pub fn figure(&mut self, text: &str) -> Caption {
        self.figures += 1;
        self.numbered("Figure", self.figures, text)
    }

    fn numbered(&mut self, kind: &str, number: usize, text: &str) -> Caption {
        let id = self.anchors.fresh(&kind.to_ascii_lowercase(), &number.to_string());
        Caption { id, label: format!("{kind} {number}"), text: Line::of(text) }
    }
}

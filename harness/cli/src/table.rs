//! Plain tables: columns aligned by their widest cell.

/// Rows of cells; the first row is the heading.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The lines, indented by two blanks.
    pub(crate) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |c: usize| self.rows.iter().filter_map(|r| r.get(c)).map(|s| visible(s)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - visible(cell))))
                .collect();
            format!("  {}", cells.join("  ")).trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Characters that take up room: all but colour codes.
fn visible(text: &str) -> usize {
    let mut inside = false;
    let count = |c: char| match (inside, c) {
        (false, '\x1b') => {
            inside = true;
            false
        }
        (true, 'm') => {
            inside = false;
            false
        }
        (true, _) => false,
        (false, _) => true,
    };
    text.chars().map(count).filter(|shown| *shown).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_the_colour() {
        let mut table = Table::new(&["a", "verdict"]);
        table.row(["x".into(), "\x1b[32mreproduced\x1b[0m".into()]);
        table.row(["longer ±".into(), "no".into()]);
        assert_eq!(
            table.lines(),
            ["  a         verdict", "  x         \x1b[32mreproduced\x1b[0m", "  longer ±  no"]
        );
    }
}

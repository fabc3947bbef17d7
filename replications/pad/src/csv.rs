//! Tables with commas between fields and a line of titles, as SVAMP's authors publish them.

use std::collections::BTreeMap;

use thiserror::Error;

/// A text that is no such table.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("row {row}: {problem}")]
pub struct CsvError {
    /// The row, the titles being row 1.
    pub row: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// The rows after the titles, each field under its title.
///
/// # Errors
/// A row has more or fewer fields than there are titles, or a quotation mark is not closed.
pub fn rows(text: &str) -> Result<Vec<BTreeMap<String, String>>, CsvError> {
    let mut records = records(text)?.into_iter();
    let titles = records.next().unwrap_or_default();
    let named = |(i, fields): (usize, Vec<String>)| match fields.len() == titles.len() {
        true => Ok(titles.iter().cloned().zip(fields).collect()),
        false => Err(CsvError {
            row: i + 2,
            problem: format!("{} fields, the line of titles has {}", fields.len(), titles.len()),
        }),
    };
    records.enumerate().map(named).collect()
}

/// A field may stand in quotation marks, which are doubled inside, and then hold commas and ends of lines.
fn records(text: &str) -> Result<Vec<Vec<String>>, CsvError> {
    let (mut records, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => record.push(std::mem::take(&mut field)),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                record.push(std::mem::take(&mut field));
                records.push(std::mem::take(&mut record));
            }
            c => field.push(c),
        }
    }
    if quoted {
        return Err(CsvError {
            row: records.len() + 1,
            problem: "a quotation mark is not closed".to_owned(),
        });
    }
    if !(field.is_empty() && record.is_empty()) {
        record.push(field);
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use replica_core::Seed;

    #[test]
    fn rows_have_titles() {
        let found = rows("a,b\r\n\"1, \"\"one\"\"\n\",2\n,").unwrap();
        let fields: Vec<[&str; 2]> = found.iter().map(|row| [row["a"].as_str(), &row["b"]]).collect();
        assert_eq!(fields, [["1, \"one\"\n", "2"], ["", ""]]);
        assert!(rows("").unwrap().is_empty());
        assert_eq!(rows("a,b\n1").unwrap_err().to_string(), "row 2: 1 fields, the line of titles has 2");
        assert_eq!(rows("a\n\"1").unwrap_err().row, 2);
    }

    #[test]
    fn what_is_quoted_is_read_back() {
        let mut rng = Seed(1).stream("fields");
        let mut below = |n: u32| rng.next_u32() % n;
        for _ in 0..1000 {
            let mut field =
                || (0..below(7)).map(|_| [',', '"', '\n', '\r', 'a'][below(5) as usize]).collect::<String>();
            let fields = [field(), field(), field()];
            let line = fields.clone().map(|field| format!("\"{}\"", field.replace('"', "\"\"")));
            assert_eq!(records(&format!("{}\n", line.join(","))).unwrap(), [fields]);
        }
    }
}

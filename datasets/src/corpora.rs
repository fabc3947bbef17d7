//! Reading the two texts that are embedded at build time into units.
//!
//! Used by the build script; the library compiles it for its tests only.

use crate::unit::Unit;

/// The dictionary's entries: headword, definition, blank line. The file is one JSON object.
pub fn dictionary(json: &str) -> Result<Vec<Unit>, String> {
    let entries: std::collections::BTreeMap<String, String> =
        serde_json::from_str(json).map_err(|e| format!("the dictionary is not an object of strings: {e}"))?;
    Ok(entries
        .into_iter()
        .map(|(headword, definition)| {
            let text = format!("{headword}\n{}\n\n", definition.trim());
            Unit { key: headword, text }
        })
        .collect())
}

/// The Bible's chapters: name, one verse a line, blank line. Lines of the file are `Book C:V text`;
/// the square brackets mark words that were set in italics and the single guillemets spoken words:
/// the words stay, the marks go.
pub fn bible(text: &str) -> Result<Vec<Unit>, String> {
    let mut chapters: Vec<Unit> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let (chapter, verse) = chapter_and_verse(line)
            .ok_or_else(|| format!("line {}: `Book C:V text` is expected", number + 1))?;
        if chapters.last().is_none_or(|last| last.key != chapter) {
            chapters.push(Unit { key: chapter.to_owned(), text: format!("{chapter}\n") });
        }
        if let Some(last) = chapters.last_mut() {
            last.text.extend(verse.chars().filter(|c| !matches!(c, '[' | ']' | '‹' | '›')));
            last.text.push('\n');
        }
    }
    for chapter in &mut chapters {
        chapter.text.push('\n');
    }
    Ok(chapters)
}

/// `1 John 2:3 text` is (`1 John 2`, `text`).
fn chapter_and_verse(line: &str) -> Option<(&str, &str)> {
    let (chapter, rest) = line.split_once(':')?;
    let (verse, text) = rest.split_once(' ')?;
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (book, chapter_number) = chapter.rsplit_once(' ')?;
    (!book.is_empty() && number(chapter_number) && number(verse)).then_some((chapter, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionary_entries_are_headword_and_definition() {
        let units = dictionary(r#"{"ZEAL": " Ardor. ", "ACE": "A unit."}"#).unwrap();
        assert_eq!(units[0], Unit { key: "ACE".into(), text: "ACE\nA unit.\n\n".into() });
        assert_eq!(units[1].text, "ZEAL\nArdor.\n\n");
        assert!(dictionary("[1]").is_err());
    }

    #[test]
    fn bible_chapters_keep_whole_verses() {
        let units = bible("1 Ezra 1:1 And [it was]: so.\n1 Ezra 1:2 ‹Go› forth.\n1 Ezra 2:1 End.\n").unwrap();
        assert_eq!(units.len(), 2);
        assert_eq!(
            units[0],
            Unit { key: "1 Ezra 1".into(), text: "1 Ezra 1\nAnd it was: so.\nGo forth.\n\n".into() }
        );
        assert_eq!(units[1].text, "1 Ezra 2\nEnd.\n\n");
        assert!(bible("no verse here\n").unwrap_err().contains("line 1"));
    }
}

//! Names of places within a page: unique, and made of harmless characters whatever they are named after.

use std::collections::HashSet;

/// The anchors of a page.
#[derive(Default)]
pub(crate) struct Anchors(HashSet<String>);

impl Anchors {
    /// A new anchor named after something.
    pub fn fresh(&mut self, kind: &str, name: &str) -> String {
        let base = slug(kind, name);
        let mut anchor = base.clone();
        let mut n = 2;
        while !self.0.insert(anchor.clone()) {
            anchor = format!("{base}-{n}");
            n += 1;
        }
        anchor
    }
}

/// Words of lower-case ASCII letters and digits, joined by `-`.
pub(crate) fn slug(kind: &str, name: &str) -> String {
    let mut slug = kind.to_owned();
    for word in name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
        slug.push('-');
        slug.push_str(&word.to_ascii_lowercase());
    }
    slug
}

/// Whether a paper id can be the name of a page.
pub(crate) fn is_page_name(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    !id.is_empty() && id.bytes().all(allowed) && id != "index"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_unique_and_harmless() {
        let mut anchors = Anchors::default();
        assert_eq!(anchors.fresh("claim", "Lower <b>"), "claim-lower-b");
        assert_eq!(anchors.fresh("claim", "lower/b"), "claim-lower-b-2");
        assert_eq!(anchors.fresh("claim", "«»"), "claim");
        assert!(is_page_name("lpa") && !is_page_name("../x") && !is_page_name("index") && !is_page_name(""));
    }
}

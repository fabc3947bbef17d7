//! Errors about names: what was wrong, what is allowed, and what was probably meant.

/// `unknown WHAT NAME; did you mean X? Known: A, B, C`.
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let list =
        if known.is_empty() { "there is none".to_owned() } else { format!("known: {}", known.join(", ")) };
    let nearest = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&k.to_lowercase(), &name.to_lowercase()), *k))
        .min()
        // a third of the letters may be wrong
        .filter(|(distance, k)| *distance <= (k.len().max(name.len()) / 3).max(1));
    match nearest {
        Some((_, nearest)) => format!("unknown {what} `{name}`; did you mean `{nearest}`? ({list})"),
        None => format!("unknown {what} `{name}`; {list}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_near_only() {
        let known = ["lpa", "cogenesis"];
        assert_eq!(
            unknown("paper", "lap", &known),
            "unknown paper `lap`; did you mean `lpa`? (known: lpa, cogenesis)"
        );
        assert_eq!(unknown("paper", "bert", &known), "unknown paper `bert`; known: lpa, cogenesis");
        assert_eq!(unknown("paper", "lpa", &[]), "unknown paper `lpa`; there is none");
    }
}

//! The program in a teacher's answer.

/// `def solution():` of an answer in the form of the authors' data (paper card, section 2.1, item 5): a line of four
/// blanks, then the body; the docstring, which repeats the question, is left out, and so is all that follows the body.
/// None if there is no such function, or nothing in it.
///
/// The answer may be bare or fenced, with words around it. Of several functions the first counts, but none inside the
/// thoughts that some models write before `</think>` (our choice).
pub fn extract(answer: &str) -> Option<String> {
    let answer = answer.rsplit_once("</think>").map_or(answer, |(_, after)| after);
    let mut lines = answer.lines();
    let (indent, header, first) = lines.find_map(header)?;
    let inside = |line: &str| match line.strip_prefix(indent) {
        Some(line) => line.starts_with([' ', '\t']) && !line.trim_start().starts_with("```"),
        None => false,
    };
    let mut rest: Vec<&str> = lines.collect();
    if !first.is_empty() {
        rest.clear();
    }
    let rest = without_docstring(first, &rest)?;
    let mut body: Vec<String> = Vec::new();
    for line in rest {
        if line.trim().is_empty() {
            body.push(String::new());
        } else if inside(&line) {
            body.push(line[indent.len()..].trim_end().to_owned());
        } else {
            break;
        }
    }
    let body = body.join("\n");
    let body = body.trim_end().trim_start_matches('\n');
    (!body.is_empty()).then(|| format!("{header}\n    \n{body}"))
}

/// What stands before `def solution`, the header without annotations, and what follows it on the same line.
fn header(line: &str) -> Option<(&str, String, &str)> {
    let text = line.trim_start();
    let (parameters, rest) = text.strip_prefix("def solution(")?.split_once(')')?;
    let (_, first) = rest.split_once(':')?;
    let first = first.trim();
    let first = if first.starts_with('#') { "" } else { first };
    Some((&line[..line.len() - text.len()], format!("def solution({}):", parameters.trim()), first))
}

/// The lines of a body without its docstring, which may be of several lines, indented or not. None if it never ends.
fn without_docstring(first: &str, rest: &[&str]) -> Option<Vec<String>> {
    if !first.is_empty() {
        return Some(vec![format!("    {first}")]);
    }
    let start = rest.iter().position(|line| !line.trim().is_empty())?;
    let plain = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let line = rest[start].trim_start();
    let literal = line.strip_prefix(['r', 'R', 'u', 'U']).unwrap_or(line);
    let Some(quote) = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| literal.starts_with(quote))
    else {
        return Some(plain(rest));
    };
    let indent = &rest[start][..rest[start].len() - line.len()];
    let mut text = &literal[quote.len()..];
    for next in start + 1.. {
        if let Some(end) = closing(text, quote) {
            let after = text[end + quote.len()..].trim().trim_start_matches(';').trim_start();
            let mut body = plain(&rest[next..]);
            if !after.is_empty() && !after.starts_with('#') {
                body.insert(0, format!("{indent}{after}"));
            }
            return Some(body);
        }
        text = rest.get(next).filter(|_| quote.len() == 3)?;
    }
    None
}

/// Where an unescaped quote stands.
fn closing(text: &str, quote: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        if rest.starts_with(quote) {
            return Some(at);
        }
        let mut chars = rest.chars();
        let length = chars.next()?.len_utf8();
        // a backslash takes the next character along
        let escaped = if rest.starts_with('\\') { chars.next().map_or(0, char::len_utf8) } else { 0 };
        at += length + escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str =
        "def solution():\n    \n    a = 2\n\n    # twice\n    result = a * 2\n    return result";

    #[test]
    fn the_program_is_found_wherever_it_stands() {
        let body = "    a = 2\n\n    # twice\n    result = a * 2\n    return result";
        let bare = format!("def solution():\n{body}");
        let deeper = bare.lines().map(|line| format!("   {line}\n")).collect::<String>();
        for answer in [
            bare.clone(),
            format!("Here it is:\n```python\n{bare}\n```\nIt returns 4."),
            format!("```\n{bare}"),
            format!("1. The program:\n\n   ```python\n{deeper}   ```\n"),
            format!("{bare}\n\nprint(solution())"),
            format!("{bare}\n\nQuestion: another\nSolution:\ndef solution():\n    return 5"),
            format!("<think>\ndef solution():\n    return 1\n</think>\n{bare}"),
            bare.replace('\n', "\r\n"),
            format!("def solution() -> int:  # returns {{}}\n\n{body}   \n    \n"),
        ] {
            assert_eq!(extract(&answer).as_deref(), Some(PROGRAM), "{answer}");
        }
        assert_eq!(
            extract("def solution(): return 5").as_deref(),
            Some("def solution():\n    \n    return 5")
        );
        let untouched = "def solution():\n    \n    \n    return \"a\"";
        assert_eq!(extract(untouched).as_deref(), Some("def solution():\n    \n    return \"a\""));
    }

    #[test]
    fn the_repeated_question_goes() {
        let body = "    a = 2\n\n    # twice\n    result = a * 2\n    return result";
        for docstring in [
            "    \"\"\"How many?\"\"\"\n",
            "    '''How many\napples\n  are there?\n    '''\n",
            "    \"\"\"She said \"4\" and \\\"\"\"5.\"\"\"\n",
            "    \"How many?\"\n",
            "    \n    r\"\"\"How many?\"\"\"  # the question\n",
            "    \"\"\"How many? def solution(): \"\"\"\n\n",
        ] {
            let answer = format!("def solution():\n{docstring}{body}");
            assert_eq!(extract(&answer).as_deref(), Some(PROGRAM), "{answer}");
        }
        let same_line = "def solution():\n    \"\"\"q\"\"\"; a = 1\n    return a";
        assert_eq!(extract(same_line).as_deref(), Some("def solution():\n    \n    a = 1\n    return a"));
    }

    #[test]
    fn no_program_is_none() {
        for answer in [
            "",
            "The answer is 5.",
            "def solve():\n    return 5",
            "def solution():",
            "def solution():\n    \"\"\"never ends\n    return 5",
            "def solution():\n    \"\"\"only this\"\"\"\n",
            "def solution():\nreturn 5",
            "def solution():\n    'open\n    return 5",
            "def solution(\n):\n    return 5",
        ] {
            assert_eq!(extract(answer), None, "{answer}");
        }
    }
}

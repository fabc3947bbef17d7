//! A strict reader of the HTML that our templates write: every element is closed in order, every attribute quoted.

#![allow(dead_code)]

use std::collections::BTreeMap;

/// An element or a text.
#[derive(Debug)]
pub enum Node {
    Element(Element),
    Text(String),
}

/// An element.
#[derive(Debug, Default)]
pub struct Element {
    pub tag: String,
    pub attributes: BTreeMap<String, String>,
    pub children: Vec<Node>,
}

const VOID: [&str; 6] = ["meta", "link", "br", "img", "hr", "input"];

impl Element {
    /// All elements below, itself first, in document order.
    pub fn all(&self) -> Vec<&Element> {
        let mut found = vec![self];
        for child in &self.children {
            if let Node::Element(e) = child {
                found.extend(e.all());
            }
        }
        found
    }

    /// All elements with a tag.
    pub fn tagged(&self, tag: &str) -> Vec<&Element> {
        self.all().into_iter().filter(|e| e.tag == tag).collect()
    }

    /// An attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// Its text with single spaces; what only screen readers get stands in braces.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.collect(&mut out);
        out.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn collect(&self, out: &mut String) {
        for child in &self.children {
            match child {
                Node::Text(t) => out.push_str(t),
                Node::Element(e) if matches!(e.tag.as_str(), "style" | "script" | "svg") => {}
                Node::Element(e) if e.attribute("class") == Some("spoken") => {
                    out.push('{');
                    e.collect(out);
                    out.push('}');
                }
                Node::Element(e) => {
                    out.push_str(if e.attribute("class") == Some("note") { " / " } else { "" });
                    e.collect(out);
                    if !matches!(e.tag.as_str(), "code" | "b" | "i" | "a" | "span" | "strong") {
                        out.push(' ');
                    }
                }
            }
        }
    }
}

/// Reads a page.
pub fn parse(html: &str) -> Result<Element, String> {
    let mut stack = vec![Element { tag: "#root".into(), ..Element::default() }];
    let mut rest = html;
    while !rest.is_empty() {
        let (text, tail) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
        push(&mut stack, Node::Text(unescape(text)?));
        rest = tail;
        if rest.is_empty() {
            break;
        }
        let end = tag_end(rest).ok_or_else(|| format!("unclosed tag near {}", near(rest)))?;
        let inner = &rest[1..end];
        let after = &rest[end + 1..];
        if inner.starts_with('!') {
            rest = after;
        } else if let Some(name) = inner.strip_prefix('/') {
            let element = stack.pop().ok_or("too many closing tags")?;
            if element.tag != name || stack.is_empty() {
                return Err(format!("</{name}> closes <{}> near {}", element.tag, near(after)));
            }
            push(&mut stack, Node::Element(element));
            rest = after;
        } else {
            let closed = inner.ends_with('/');
            let element = opening(inner.trim_end_matches('/'))?;
            if closed || VOID.contains(&element.tag.as_str()) {
                push(&mut stack, Node::Element(element));
                rest = after;
            } else if element.tag == "style" || element.tag == "script" {
                let close = format!("</{}>", element.tag);
                let stop = after.find(&close).ok_or_else(|| format!("{close} is missing"))?;
                let mut element = element;
                element.children.push(Node::Text(after[..stop].to_owned()));
                push(&mut stack, Node::Element(element));
                rest = &after[stop + close.len()..];
            } else {
                stack.push(element);
                rest = after;
            }
        }
    }
    match (stack.pop(), stack.is_empty()) {
        (Some(root), true) => Ok(root),
        (open, _) => Err(format!("never closed: {:?}", open.map(|e| e.tag))),
    }
}

fn push(stack: &mut [Element], node: Node) {
    stack.last_mut().unwrap().children.push(node);
}

fn near(text: &str) -> String {
    text.chars().take(80).collect()
}

fn tag_end(text: &str) -> Option<usize> {
    let mut quoted = false;
    for (i, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '>' if !quoted => return Some(i),
            '<' if i > 0 => return None,
            _ => {}
        }
    }
    None
}

fn opening(inner: &str) -> Result<Element, String> {
    let (tag, mut rest) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
    if tag.is_empty() || !tag.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(format!("strange tag <{inner}>"));
    }
    let mut element = Element { tag: tag.to_owned(), ..Element::default() };
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(element);
        }
        let stop = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (name, tail) = rest.split_at(stop);
        let (value, tail) = match tail.strip_prefix("=\"") {
            Some(tail) => tail.split_once('"').ok_or_else(|| format!("open quote in <{inner}>"))?,
            None if tail.starts_with('=') => return Err(format!("unquoted attribute in <{inner}>")),
            None => ("", tail),
        };
        if element.attributes.insert(name.to_owned(), unescape(value)?).is_some() {
            return Err(format!("{name} twice in <{inner}>"));
        }
        rest = tail;
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let (name, tail) = after.split_once(';').ok_or_else(|| format!("bare & near {}", near(after)))?;
        out.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" | "#34" => '"',
            "#x27" | "#39" => '\'',
            "#x2f" | "#47" => '/',
            "nbsp" => '\u{a0}',
            other => return Err(format!("unknown entity &{other};")),
        });
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

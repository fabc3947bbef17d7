//! What every page of the site must be, whatever the evidence.

// a test may panic, and so may its helpers
#![allow(clippy::unwrap_used)]

mod html;
mod synthetic;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use html::{Element, parse};
use replica_core::plan::Scale;
use replica_reports::{ReportError, render_site};
use synthetic::POISON;

/// The pages of a site by file name, parsed, with their text.
fn pages(folder: &Path) -> Vec<(String, String, Element)> {
    let mut pages: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            let page = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, text, page)
        })
        .collect();
    pages.sort_by(|a, b| a.0.cmp(&b.0));
    pages
}

fn render(evidence: &[replica_core::Evidence]) -> (tempfile::TempDir, Vec<(String, String, Element)>) {
    let folder = tempfile::tempdir().unwrap();
    let index = render_site(evidence, &synthetic::history(), &synthetic::goldens(), folder.path()).unwrap();
    assert_eq!(index, folder.path().join("index.html"));
    let pages = pages(folder.path());
    (folder, pages)
}

/// Every kind of evidence there is.
fn kinds() -> Vec<Vec<replica_core::Evidence>> {
    let mut nan = synthetic::evidence(Scale::Small);
    for record in nan.trials.iter_mut().filter_map(|t| t.record.as_mut()).step_by(3) {
        record.seconds = f64::NAN;
        record.measurements.metrics.values_mut().for_each(|v| *v = f64::NAN);
        record.measurements.curves.values_mut().for_each(|c| c.y.fill(f64::INFINITY));
    }
    for verdict in &mut nan.verdicts {
        for c in verdict.comparisons.iter_mut().chain(&mut verdict.guards) {
            c.effect = f64::NAN;
            c.interval = (f64::NEG_INFINITY, f64::NAN);
            (c.p, c.p_holm) = (f64::NAN, f64::NAN);
        }
    }
    let mut one_seed = synthetic::evidence(Scale::Gpu);
    one_seed.trials.retain(|t| t.spec.seed <= 1);
    one_seed.backend = "cuda".into();
    let mut ragged = synthetic::evidence(Scale::Small);
    ragged.plan.experiments.remove(0);
    ragged.plan.experiments[0].variants.clear();
    ragged.plan.experiments[0].metrics.clear();
    vec![
        vec![],
        vec![synthetic::empty("nothing")],
        vec![synthetic::not_run()],
        synthetic::site(),
        vec![one_seed, synthetic::evidence(Scale::Smoke), synthetic::evidence(Scale::Small)],
        vec![nan],
        vec![ragged],
        vec![synthetic::hostile()],
    ]
}

#[test]
fn every_page_is_sound() {
    for evidence in kinds() {
        let (_folder, pages) = render(&evidence);
        let names: HashSet<&str> = pages.iter().map(|p| p.0.as_str()).collect();
        assert!(names.contains("index.html"));
        for (name, text, page) in &pages {
            is_self_contained(name, text, page);
            has_unique_ids(name, page);
            links_resolve(name, page, &pages);
            has_landmarks_and_heading_order(name, page);
            describes_its_drawings(name, page);
            heads_its_tables(name, page);
            let body = page.tagged("body")[0].text();
            for word in ["NaN", "inf ", "undefined", "Some("] {
                assert!(!body.contains(word), "{name} says {word}");
            }
            for e in page.all() {
                for (attribute, value) in &e.attributes {
                    let drawn =
                        ["d", "x", "y", "cx", "cy", "width", "transform"].contains(&attribute.as_str());
                    assert!(
                        !drawn || !value.contains("NaN") && !value.contains("inf"),
                        "{name}: {attribute}={value}"
                    );
                }
            }
        }
    }
}

fn is_self_contained(name: &str, text: &str, page: &Element) {
    for e in page.all() {
        for (attribute, value) in &e.attributes {
            match attribute.as_str() {
                "href" if e.tag == "a" => assert!(!value.contains("javascript:"), "{name}: {value}"),
                "href" => assert_eq!(value, "data:,", "{name}: <{}> loads {value}", e.tag),
                "src" | "srcset" | "data" | "poster" | "action" | "style" => {
                    panic!("{name}: <{}> has {attribute}={value}", e.tag)
                }
                other => assert!(!other.starts_with("on"), "{name}: <{}> has {other}", e.tag),
            }
        }
    }
    for style in page.tagged("style") {
        let css = format!("{style:?}");
        assert!(!css.contains("url(") && !css.contains("@import"), "{name}");
    }
    assert_eq!(page.tagged("script").len(), 1, "{name}");
    assert!(page.tagged("img").is_empty() && page.tagged("iframe").is_empty(), "{name}");
    for path in ["/home/", "/root/", "/work/", "/tmp/"] {
        assert!(!text.contains(path), "{name} names the machine path {path}");
    }
}

fn has_unique_ids(name: &str, page: &Element) {
    let mut seen = HashSet::new();
    for id in page.all().iter().filter_map(|e| e.attribute("id")) {
        assert!(seen.insert(id.to_owned()), "{name}: id {id} twice");
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}: id {id}");
    }
    for e in page.all() {
        for id in e.attribute("aria-labelledby").unwrap_or_default().split_whitespace() {
            assert!(seen.contains(id), "{name}: <{}> is labelled by {id}, which is missing", e.tag);
        }
    }
}

fn links_resolve(name: &str, page: &Element, pages: &[(String, String, Element)]) {
    for link in page.tagged("a").iter().filter_map(|a| a.attribute("href")) {
        if link.starts_with("https://") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let file = if file.is_empty() { name } else { file };
        let target = pages.iter().find(|p| p.0 == file).unwrap_or_else(|| panic!("{name}: no page {file}"));
        let ids = target.2.all().iter().filter_map(|e| e.attribute("id")).collect::<HashSet<_>>();
        assert!(anchor.is_empty() || ids.contains(anchor), "{name}: {link} leads nowhere");
    }
}

fn has_landmarks_and_heading_order(name: &str, page: &Element) {
    assert_eq!(page.tagged("html")[0].attribute("lang"), Some("en"));
    for landmark in ["header", "main", "footer", "h1", "title"] {
        let found =
            page.tagged(landmark).into_iter().filter(|e| e.tag != "title" || e.attribute("id").is_none());
        assert_eq!(found.count(), 1, "{name}: <{landmark}>");
    }
    let first_link = page.tagged("a")[0];
    assert_eq!(first_link.attribute("href"), Some("#main"), "{name}: the skip link comes first");
    let mut level = 0;
    for e in page.all() {
        let is_heading = e.tag.len() == 2 && e.tag.starts_with('h') && e.tag.as_bytes()[1].is_ascii_digit();
        if is_heading {
            let next = usize::from(e.tag.as_bytes()[1] - b'0');
            assert!(next <= level + 1, "{name}: <h{next}> after <h{level}>: {}", e.text());
            assert!(!e.text().is_empty(), "{name}: an empty heading");
            level = next;
        }
    }
}

fn describes_its_drawings(name: &str, page: &Element) {
    for svg in page.tagged("svg") {
        if svg.attribute("aria-hidden") == Some("true") {
            continue;
        }
        assert_eq!(svg.attribute("role"), Some("img"), "{name}");
        for part in ["title", "desc"] {
            assert_eq!(svg.tagged(part).len(), 1, "{name}: a drawing without {part}");
            assert!(!svg.tagged(part)[0].text().is_empty(), "{name}: an empty {part}");
        }
    }
    for e in page.all() {
        let badge = e.attribute("class").is_some_and(|c| c.split(' ').any(|c| c == "badge"));
        assert!(
            !badge || (e.tagged("svg").len() == 1 && !e.text().is_empty()),
            "{name}: a badge of colour alone"
        );
    }
}

fn heads_its_tables(name: &str, page: &Element) {
    for table in page.tagged("table") {
        assert!(
            table.attribute("aria-labelledby").or(table.attribute("aria-label")).is_some()
                || name == "index.html"
        );
        let mut widths = HashSet::new();
        for row in table.tagged("tr") {
            let span = |e: &&Element| e.attribute("colspan").map_or(1, |s| s.parse::<usize>().unwrap());
            let cells: Vec<&Element> =
                row.all().into_iter().filter(|e| e.tag == "td" || e.tag == "th").collect();
            widths.insert(cells.iter().map(span).sum::<usize>());
            for cell in cells {
                assert!(cell.tag == "td" || cell.attribute("scope").is_some(), "{name}: <th> without scope");
            }
        }
        assert_eq!(widths.len(), 1, "{name}: ragged table {}", table.text());
        for row in table.tagged("tbody").iter().flat_map(|b| b.tagged("tr")) {
            for cell in row.tagged("td") {
                let shown = !cell.text().is_empty() || !cell.tagged("svg").is_empty();
                assert!(shown, "{name}: a blank cell in {}", row.text());
            }
        }
    }
}

#[test]
fn hostile_text_stays_text() {
    let (_folder, pages) = render(&[synthetic::hostile()]);
    for (name, text, page) in &pages {
        assert!(!text.contains("<script>alert") && !text.contains("<img"), "{name}");
        assert!(page.text().contains(POISON), "{name}: the text itself must still be readable");
    }
}

#[test]
fn a_failed_rendering_leaves_the_old_site() {
    let folder = tempfile::tempdir().unwrap();
    render_site(&synthetic::site(), &[], &[], folder.path()).unwrap();
    let before: Vec<_> = pages(folder.path()).into_iter().map(|p| (p.0, p.1)).collect();

    let twice = [synthetic::evidence(Scale::Small), synthetic::evidence(Scale::Small)];
    let error = render_site(&twice, &[], &[], folder.path()).unwrap_err();
    assert_eq!(error.to_string(), "demo at scale `small` on cpu was given twice; a page can show it once");
    for id in ["../escape", "index", "a b", ""] {
        let error = render_site(&[synthetic::empty(id)], &[], &[], folder.path()).unwrap_err();
        assert!(matches!(error, ReportError::PaperId(_)), "{error}");
    }
    let after: Vec<_> = pages(folder.path()).into_iter().map(|p| (p.0, p.1)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = render_site(&[], &[], &[], &file).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot write {}", file.display())), "{error}");
}

#[test]
fn no_temporary_file_is_left_and_pages_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        render_site(&synthetic::site(), &[], &[], folder.path()).unwrap();
        let names: Vec<String> = pages(folder.path()).into_iter().map(|p| p.0).collect();
        assert_eq!(names, ["demo.html", "demo.smoke-cpu.html", "index.html", "untouched.html"]);
    }
}

#[test]
fn same_evidence_gives_the_same_bytes() {
    let (_a, first) = render(&synthetic::site());
    let (_b, second) = render(&synthetic::site());
    assert!(first.iter().zip(&second).all(|(a, b)| a.1 == b.1));
}

#[test]
fn smoke_says_what_it_is() {
    let (_folder, pages) = render(&[synthetic::evidence(Scale::Smoke)]);
    let page = &pages.iter().find(|p| p.0 == "demo.html").unwrap().2;
    assert!(page.text().contains("this checks the machinery, not the claims"));
    let (_folder, pages) = render(&[synthetic::evidence(Scale::Small)]);
    assert!(!pages[0].2.text().contains("machinery"));
}

#[test]
fn nothing_run_is_said_so() {
    let (_folder, pages) = render(&[synthetic::not_run()]);
    let page = &pages.iter().find(|p| p.0 == "demo.html").unwrap().2;
    let text = page.text();
    assert!(text.contains("None of 48 trials has run yet."), "{text}");
    assert!(text.contains("Not run yet.") && text.contains("not read yet"));
}

/// A method that has run has no value of a metric that is none of its own; one that has not run says so.
#[test]
fn a_metric_that_a_method_does_not_have_is_not_missing() {
    let mut evidence = synthetic::evidence(Scale::Small);
    for trial in &mut evidence.trials {
        match (trial.spec.variant.as_str(), &mut trial.record) {
            ("low_attn", Some(record)) => {
                record.measurements.metrics.remove("bits_per_byte");
            }
            ("low_ffn", record) => *record = None,
            _ => {}
        }
    }
    let (_folder, pages) = render(&[evidence]);
    let page = &pages.iter().find(|(name, ..)| name != "index.html").unwrap().1;
    let table = &page[page.find("further measurements").unwrap()..];
    let row = |label: &str| {
        let row = &table[table.find(label).unwrap()..];
        row[..row.find("</tr>").unwrap()].to_owned()
    };
    assert!(!row("Low-dim attention").contains("not run yet"), "{}", row("Low-dim attention"));
    assert!(row("Low-dim attention").contains('—'));
    assert!(row("Low-dim FFN").contains("not run yet"), "{}", row("Low-dim FFN"));
}

#[test]
fn sections_without_content_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    render_site(&[synthetic::empty("bare")], &[], &[], folder.path()).unwrap();
    for (_, _, page) in pages(folder.path()) {
        let headings: Vec<String> = page.tagged("h2").iter().map(|h| h.text()).collect();
        for left_out in ["The nightly trend", "Regression check", "What could not be obtained"] {
            assert!(!headings.iter().any(|h| h == left_out), "{headings:?}");
        }
    }
}

#[test]
fn structure_of_the_pages() {
    let (_folder, pages) = render(&synthetic::site());
    for name in ["index.html", "demo.html"] {
        let page = &pages.iter().find(|p| p.0 == name).unwrap().2;
        insta::assert_snapshot!(name.trim_end_matches(".html"), outline(page));
    }
}

/// Headings, paragraphs, lists and tables as text; drawings by title; folded tables by their heads.
fn outline(page: &Element) -> String {
    let body = page.tagged("body")[0];
    let mut skipped: HashSet<*const Element> = HashSet::new();
    for container in body.all() {
        let inner: &[&str] = match container.tag.as_str() {
            // parts of what their container prints
            "svg" => &["title", "desc"],
            "li" => &["p", "li"],
            "details" => &["tbody"],
            _ => continue,
        };
        let parts =
            inner.iter().flat_map(|tag| container.tagged(tag)).filter(|e| !std::ptr::eq(*e, container));
        skipped.extend(parts.flat_map(Element::all).map(std::ptr::from_ref));
    }
    let mut out = String::new();
    for e in body.all().into_iter().filter(|e| !skipped.contains(&std::ptr::from_ref(*e))) {
        let line = match e.tag.as_str() {
            "h1" | "h2" | "h3" | "h4" => {
                format!("\n{} {}", "#".repeat(usize::from(e.tag.as_bytes()[1] - b'0')), e.text())
            }
            "p" | "figcaption" | "summary" | "dt" | "pre" => e.text(),
            "li" => {
                let links = e.tagged("a");
                let label = links.first().and_then(|a| a.attribute("aria-label"));
                format!("- {}", label.map_or_else(|| e.text(), str::to_owned))
            }
            "dd" => format!("    {}", e.text()),
            "tr" => {
                let cells = e.all().into_iter().filter(|c| c.tag == "td" || c.tag == "th");
                format!("| {} |", cells.map(Element::text).collect::<Vec<_>>().join(" | "))
            }
            "svg" if e.attribute("role").is_some() && e.attribute("class") != Some("lines narrow") => {
                format!("[{}: {}]", e.tagged("title")[0].text(), e.tagged("desc")[0].text())
            }
            _ => continue,
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

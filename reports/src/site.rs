//! The site on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use replica_core::Evidence;

use crate::anchor::{is_page_name, slug};
use crate::error::ReportError;
use crate::golden::GoldenStatus;
use crate::history::HistoryPoint;
use crate::page::{Sheet, index, paper};
use crate::template::Templates;

/// Renders all pages into a folder and returns the path of `index.html`.
///
/// A paper with evidence at several scales or backends gets a page for each: `lpa.html` is the largest scale that has
/// run, the others are named like `lpa.small-cpu.html`. An empty `history` or `goldens` leaves its section out.
///
/// All pages are rendered before the first is written, and each is written to a temporary file and renamed: a reader
/// never sees half a page, and a failed rendering changes nothing.
///
/// # Errors
/// A paper id that cannot be a file name, evidence given twice, or a folder that cannot be written.
pub fn render_site(
    evidence: &[Evidence],
    history: &[HistoryPoint],
    goldens: &[GoldenStatus],
    out: &Path,
) -> Result<PathBuf, ReportError> {
    let templates = Templates::new()?;
    let papers = sheets(evidence)?;
    let mut pages = Vec::new();
    for sheets in &papers {
        for sheet in sheets {
            let siblings: Vec<&Sheet> = sheets.iter().filter(|s| s.file != sheet.file).collect();
            let context = paper::page(sheet, &siblings, goldens);
            pages.push((sheet.file.clone(), templates.render("paper.html", &sheet.file, &context)?));
        }
    }
    let context = index::page(&papers, history, goldens);
    // last, so that its links lead somewhere as soon as it is there
    pages.push(("index.html".to_owned(), templates.render("index.html", "index.html", &context)?));
    write(&pages, out)?;
    Ok(out.join("index.html"))
}

/// Evidence by paper in the given order, the sheet that speaks for a paper first.
fn sheets(evidence: &[Evidence]) -> Result<Vec<Vec<Sheet<'_>>>, ReportError> {
    let mut order: Vec<&str> = Vec::new();
    let mut papers: BTreeMap<&str, Vec<&Evidence>> = BTreeMap::new();
    for e in evidence {
        let id = e.paper.id.as_str();
        if !is_page_name(id) {
            return Err(ReportError::PaperId(id.to_owned()));
        }
        let same = |o: &&Evidence| o.plan.scale == e.plan.scale && o.backend == e.backend;
        let mine = papers.entry(id).or_default();
        if mine.iter().any(same) {
            return Err(ReportError::Duplicate {
                paper: id.to_owned(),
                scale: e.plan.scale.to_string(),
                backend: e.backend.clone(),
            });
        }
        if mine.is_empty() {
            order.push(id);
        }
        mine.push(e);
    }
    let sheets = order.into_iter().map(|id| {
        let mut mine = papers.remove(id).unwrap_or_default();
        let has_run = |e: &Evidence| e.trials.iter().any(|t| t.record.is_some());
        mine.sort_by_key(|e| std::cmp::Reverse((has_run(e), e.plan.scale, e.backend != "cpu")));
        let file = |(i, e): (usize, &&Evidence)| match i {
            0 => format!("{id}.html"),
            _ => format!("{id}.{}.html", slug(e.plan.scale.name(), &e.backend)),
        };
        mine.iter().enumerate().map(|(i, e)| Sheet { evidence: e, file: file((i, e)) }).collect()
    });
    Ok(sheets.collect())
}

fn write(pages: &[(String, String)], out: &Path) -> Result<(), ReportError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| ReportError::Write { path, source }
    };
    fs::create_dir_all(out).map_err(at(out))?;
    let mut written = Vec::new();
    for (name, html) in pages {
        let path = out.join(name);
        let mut file = tempfile::Builder::new()
            .prefix(".page-")
            .permissions_of_a_page()
            .tempfile_in(out)
            .map_err(at(&path))?;
        file.write_all(html.as_bytes()).map_err(at(&path))?;
        file.as_file().sync_all().map_err(at(&path))?;
        written.push((path, file));
    }
    for (path, file) in written {
        file.persist(&path).map_err(|e| at(&path)(e.error))?;
    }
    Ok(())
}

/// Temporary files are private; pages are for everybody who may read the folder.
trait PagePermissions {
    fn permissions_of_a_page(&mut self) -> &mut Self;
}

impl PagePermissions for tempfile::Builder<'_, '_> {
    #[cfg(unix)]
    fn permissions_of_a_page(&mut self) -> &mut Self {
        use std::os::unix::fs::PermissionsExt as _;
        // the process's umask still applies
        self.permissions(fs::Permissions::from_mode(0o666))
    }

    #[cfg(not(unix))]
    fn permissions_of_a_page(&mut self) -> &mut Self {
        self
    }
}

//! `replica data`

use std::collections::BTreeSet;

use replica_datasets::{FileStatus, Sources, catalogue, fetch, path, status, verify};
use serde_json::{Value, json};

use crate::Session;
use crate::arguments::{DataAction, DataOptions};
use crate::failure::Failure;
use crate::streams::{Streams, Tone};
use crate::table::Table;

pub(crate) fn data(session: &mut Session, options: &DataOptions) -> Result<(), Failure> {
    let sources = Sources::from_environment();
    match &options.action {
        DataAction::List { name } => list(session, name.as_deref(), &sources),
        DataAction::Fetch { names } => bring(session, names, &sources),
        DataAction::Verify { names } => check(session, names, &sources),
        DataAction::Path { name } => show_path(session, name, &sources),
    }
}

fn list(session: &mut Session, name: Option<&str>, sources: &Sources) -> Result<(), Failure> {
    let entries = match name {
        Some(name) => vec![catalogue().get(name)?],
        None => catalogue().entries.iter().collect(),
    };
    let json = session.arguments.global.json;
    let streams = &mut *session.streams;
    let mut found: Vec<Value> = Vec::new();
    for entry in entries {
        let files = status(&entry.name, sources)?;
        if json {
            found.push(json!({
                "name": entry.name,
                "title": entry.title,
                "licence": entry.licence,
                "citation": entry.citation,
                "url": entry.url,
                "files": files,
            }));
            continue;
        }
        let heading = streams.tone(Tone::Heading, &format!("{}: {}", entry.name, entry.title));
        streams.result(&heading);
        streams.result(&format!("  licence: {}; {}", entry.licence, entry.url));
        let mut table = Table::new(&["file", "bytes", "sha256", "here"]);
        for file in &files {
            table.row([
                file.name.clone(),
                file.bytes.map_or("?".to_owned(), |b| b.to_string()),
                file.sha256.as_ref().map_or("?".to_owned(), |d| d.short().to_owned()),
                place(streams, file),
            ]);
        }
        for line in table.lines() {
            streams.result(&line);
        }
        if name.is_some() {
            for url in files.iter().flat_map(|f| &f.urls).collect::<BTreeSet<_>>() {
                streams.result(&format!("  from {url}"));
            }
        }
    }
    if json { streams.json(&json!({ "datasets": found })) } else { Ok(()) }
}

fn place(streams: &Streams, file: &FileStatus) -> String {
    match (&file.source, &file.problem) {
        (_, Some(problem)) => streams.tone(Tone::Bad, problem),
        (Some(source), None) if file.verified => streams.tone(Tone::Good, &format!("verified ({source})")),
        (Some(source), None) => streams.tone(Tone::Unclear, &format!("not verified ({source})")),
        (None, None) => streams.tone(Tone::Quiet, "no"),
    }
}

fn bring(session: &mut Session, names: &[String], sources: &Sources) -> Result<(), Failure> {
    // all names are checked before anything is downloaded
    for name in names {
        catalogue().get(name)?;
    }
    let quiet = session.arguments.global.quiet || !session.streams.terminal;
    let mut all = Vec::new();
    for name in names {
        let bar = if quiet { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(0) };
        if let Ok(style) =
            indicatif::ProgressStyle::with_template("{msg} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        let files = fetch(name, sources, &mut |progress| {
            bar.set_length(progress.total.unwrap_or(progress.bytes));
            bar.set_position(progress.bytes);
            bar.set_message(format!("{}/{}", progress.dataset, progress.file));
        })?;
        bar.finish_and_clear();
        all.push((name.clone(), files));
    }
    show_files(session, &all)
}

fn check(session: &mut Session, names: &[String], sources: &Sources) -> Result<(), Failure> {
    let mut all = Vec::new();
    if names.is_empty() {
        // what is not here need not be verified
        for entry in &catalogue().entries {
            if status(&entry.name, sources)?.iter().all(|f| f.source.is_some() || f.problem.is_some()) {
                all.push((entry.name.clone(), verify(&entry.name, sources)?));
            }
        }
    }
    for name in names {
        all.push((name.clone(), verify(name, sources)?));
    }
    show_files(session, &all)
}

fn show_files(
    session: &mut Session,
    all: &[(String, Vec<replica_datasets::DataFile>)],
) -> Result<(), Failure> {
    if session.arguments.global.json {
        let sets: Vec<Value> =
            all.iter().map(|(name, files)| json!({ "name": name, "files": files })).collect();
        return session.streams.json(&json!({ "datasets": sets }));
    }
    let mut table = Table::new(&["file", "bytes", "sha256", "source", ""]);
    for (name, file) in all.iter().flat_map(|(name, files)| files.iter().map(move |f| (name, f))) {
        table.row([
            format!("{name}/{}", file.name),
            file.bytes.to_string(),
            file.sha256.to_string(),
            file.source.clone(),
            if file.verified { "verified" } else { "not verified: no digest is published" }.to_owned(),
        ]);
    }
    for line in table.lines() {
        session.streams.result(&line);
    }
    Ok(())
}

fn show_path(session: &mut Session, name: &str, sources: &Sources) -> Result<(), Failure> {
    let files = path(name, sources)?;
    if session.arguments.global.json {
        let files: Vec<Value> =
            files.iter().map(|(name, path)| json!({ "file": name, "path": path })).collect();
        return session.streams.json(&json!({ "files": files }));
    }
    for (file, path) in &files {
        match path {
            Some(path) => session.streams.result(&path.display().to_string()),
            None => session.streams.problem(&format!("{file} is part of the program and has no path")),
        }
    }
    Ok(())
}

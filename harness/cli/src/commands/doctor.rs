//! `replica doctor`: what this machine can do, and what to do about what it cannot.

use std::fs;
use std::path::{Path, PathBuf};

use replica_core::environment;
use replica_datasets::Sources;
use replica_nn::accelerator::{self, Gpu, compute_capability, cuda_version};
use serde::Serialize;
use serde_json::json;

use crate::Session;
use crate::failure::Failure;
use crate::streams::Tone;

/// Free space below which a run may not end: checkpoints and records of scale small stay well below (our choice).
const LEAST_FREE: u64 = 1 << 30;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    detail: String,
    /// What to do, if there is something to do.
    advice: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Fine,
    Note,
    Problem,
}

pub(crate) fn doctor(session: &mut Session) -> Result<(), Failure> {
    let global = &session.arguments.global;
    let mut findings = vec![
        fine("processor", environment::cpu_model()),
        threads(),
        simd(),
        folder("run folder", &global.runs, "--runs DIR"),
        folder("report folder", &global.site, "--site DIR"),
        folder("data cache", &Sources::from_environment().cache, "the variable REPLICA_CACHE"),
        disk(&global.runs),
    ];
    findings.extend(accelerators());
    if let Some(data) = std::env::var_os("REPLICA_DATA").filter(|v| !v.is_empty()) {
        findings.push(data_folder(Path::new(&data)));
    }
    let problems = findings.iter().filter(|f| f.state == State::Problem).count();
    if global.json {
        session.streams.json(
            &json!({ "version": env!("CARGO_PKG_VERSION"), "problems": problems, "findings": findings }),
        )?;
    } else {
        for finding in &findings {
            let (tone, word) = match finding.state {
                State::Fine => (Tone::Good, "ok     "),
                State::Note => (Tone::Unclear, "note   "),
                State::Problem => (Tone::Bad, "problem"),
            };
            let word = session.streams.tone(tone, word);
            session.streams.result(&format!("{word}  {}: {}", finding.what, finding.detail));
            if let Some(advice) = &finding.advice {
                session.streams.result(&format!("         {advice}"));
            }
        }
    }
    match problems {
        0 => Ok(()),
        n => Err(Failure::environment(format!("{n} problems were found"))),
    }
}

fn fine(what: &'static str, detail: String) -> Finding {
    Finding { what, state: State::Fine, detail, advice: None }
}

fn threads() -> Finding {
    let cores = environment::cores();
    match std::env::var("RAYON_NUM_THREADS") {
        Ok(n) => Finding {
            what: "threads",
            state: State::Note,
            detail: format!("{cores}, and RAYON_NUM_THREADS={n} is set"),
            advice: Some("trials have pools of their own: use --threads and --jobs instead".to_owned()),
        },
        Err(_) => fine("threads", cores.to_string()),
    }
}

fn simd() -> Finding {
    let simd = environment::simd();
    let slow = simd == "sse2" || simd == "none";
    Finding {
        what: "vector instructions",
        state: if slow { State::Note } else { State::Fine },
        detail: simd.to_owned(),
        advice: slow.then(|| {
            "training will be several times slower than on a processor with AVX2 or NEON".to_owned()
        }),
    }
}

/// One finding a GPU; one if there is none.
fn accelerators() -> Vec<Finding> {
    let (survey, needs) = (accelerator::survey(), accelerator::needs());
    let finding = |state, detail: String, advice: Option<String>| Finding {
        what: "accelerator",
        state,
        detail,
        advice,
    };
    let kernels = needs.map_or_else(
        || "this program computes on the CPU only".to_owned(),
        |n| {
            let (cap, cuda) = (compute_capability(n.compute_cap), cuda_version(n.cuda));
            format!("the kernels of this program need compute capability {cap} and a driver of CUDA {cuda}")
        },
    );
    let driver = match (survey.driver, &survey.problem) {
        (Some(version), None) => format!("driver CUDA {}", cuda_version(version)),
        (Some(version), Some(problem)) => format!("driver CUDA {}, {problem}", cuda_version(version)),
        (None, problem) => problem.clone().unwrap_or_else(|| "no driver".to_owned()),
    };
    if survey.gpus.is_empty() {
        let advice = needs.and_then(|needs| survey.problem_with(0, needs));
        let state = if advice.is_some() { State::Note } else { State::Fine };
        return vec![finding(state, format!("none ({driver}); {kernels}"), advice)];
    }
    let libraries = if survey.libraries.is_empty() { "none".to_owned() } else { survey.libraries.join(", ") };
    let describe = |(ordinal, gpu): (usize, &Gpu)| {
        let (cap, memory) = (compute_capability(gpu.compute_cap), gpu.memory as f64 / f64::from(1 << 30));
        let detail = format!(
            "cuda:{ordinal}: {}, compute capability {cap}, {memory:.0} GiB, {driver}, libraries: {libraries}; {kernels}",
            gpu.name
        );
        let advice = match needs {
            Some(needs) => survey.problem_with(ordinal, needs),
            None => Some("build with `--features cuda` to use it".to_owned()),
        };
        finding(if advice.is_some() { State::Note } else { State::Fine }, detail, advice)
    };
    survey.gpus.iter().enumerate().map(describe).collect()
}

/// Whether a folder, or the nearest one above it that exists, can be written.
fn folder(what: &'static str, path: &Path, option: &str) -> Finding {
    let problem = |detail: String, advice: String| Finding {
        what,
        state: State::Problem,
        detail,
        advice: Some(advice),
    };
    let Some(existing) = nearest(path) else {
        return problem(
            format!("{} cannot be created", path.display()),
            format!("choose another folder with {option}"),
        );
    };
    if !existing.is_dir() {
        return problem(
            format!("{} is a file", existing.display()),
            format!("move it away, or choose another folder with {option}"),
        );
    }
    match tempfile::Builder::new().prefix(".doctor-").tempfile_in(&existing) {
        Ok(_) if existing == path => fine(what, format!("{} can be written", path.display())),
        Ok(_) => fine(what, format!("{} does not exist yet and can be created", path.display())),
        Err(e) => problem(
            format!("{} cannot be written: {e}", existing.display()),
            format!("change its rights, or choose another folder with {option}"),
        ),
    }
}

fn nearest(path: &Path) -> Option<PathBuf> {
    let found = path.ancestors().find(|p| !p.as_os_str().is_empty() && p.exists());
    found.map(Path::to_owned).or_else(|| std::env::current_dir().ok())
}

fn disk(path: &Path) -> Finding {
    let free = nearest(path).and_then(|p| rustix::fs::statvfs(p).ok()).map(|s| s.f_bavail * s.f_frsize);
    match free {
        None => Finding { what: "free disk", state: State::Note, detail: "unknown".to_owned(), advice: None },
        Some(bytes) => Finding {
            what: "free disk",
            state: if bytes < LEAST_FREE { State::Problem } else { State::Fine },
            detail: format!("{:.1} GiB where runs are kept", bytes as f64 / f64::from(1 << 30)),
            advice: (bytes < LEAST_FREE)
                .then(|| "free some space, or choose another folder with --runs DIR".to_owned()),
        },
    }
}

fn data_folder(path: &Path) -> Finding {
    match fs::read_dir(path) {
        Ok(_) => fine("REPLICA_DATA", format!("{} can be read", path.display())),
        Err(e) => Finding {
            what: "REPLICA_DATA",
            state: State::Problem,
            detail: format!("{}: {e}", path.display()),
            advice: Some("set it to a folder with data files, or unset it".to_owned()),
        },
    }
}

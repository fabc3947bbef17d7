//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use replica_core::Scale;
use replica_core::trial::Device;
use replica_pad::teacher::Prices;

use crate::target::Target;

const ABOUT: &str = "Re-runs published machine-learning papers and says, claim by claim, whether they hold.";

const EXAMPLES: &str = "\
Examples:
  replica list                             papers, experiments and what has been run
  replica run lpa                          a whole paper at scale small: minutes on two cores
  replica run lpa/placement --seeds 5      one experiment with five seeds
  replica run lpa --scale gpu --device cuda:0
  replica check                            have results moved since they were reviewed?
  replica report --open                    the pages, from what has been run

Exit codes: 0 fine, 1 a check or a trial failed, 2 usage, 3 data or environment, 130 interrupted.
Environment: REPLICA_DATA (folder with data files), REPLICA_CACHE (verified downloads), NO_COLOR.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "replica", version, about = ABOUT, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print results and errors only, no progress
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Folder of finished trials and checkpoints; several processes may share it
    #[arg(long, global = true, value_name = "DIR", default_value = "runs")]
    pub(crate) runs: PathBuf,
    /// Folder of reviewed results
    #[arg(long, global = true, value_name = "DIR", default_value = "golden")]
    pub(crate) golden: PathBuf,
    /// Folder the pages are written to
    #[arg(long, global = true, value_name = "DIR", default_value = "reports/site")]
    pub(crate) site: PathBuf,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List papers, experiments, variants and claims, and what has been run
    List(ListOptions),
    /// Run what has not been run, judge the claims and write the report
    Run(RunOptions),
    /// Compare the latest records with the reviewed ones; fails if a result or a data digest moved
    Check(PlanOptions),
    /// Propose the latest records as reviewed ones, as a diff
    Bless(BlessOptions),
    /// Write the pages from what has been run
    Report(ReportOptions),
    /// The data: where each file comes from, its licence and digest, and whether it is here
    Data(DataOptions),
    /// Show what differs between two records, down to the first training step
    Diff(DiffOptions),
    /// Ask a large model for programs that solve questions, and keep those that run and are right
    Teach(TeachOptions),
    /// Time whole training steps, beside PyTorch where there is one
    Bench(BenchOptions),
    /// Check this machine: device, threads, folders, disk; and say what to do about problems
    Doctor,
    /// Run programs of models that come through standard input; started by those who have some
    #[command(hide = true)]
    ProgramWorker,
}

/// Which trials a command is about.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlanOptions {
    /// What to look at; all papers if left out
    #[arg(value_name = "PAPER[/EXPERIMENT[/VARIANT]]")]
    pub(crate) target: Option<Target>,
    #[command(flatten)]
    pub(crate) setting: Setting,
}

/// How a plan is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct Setting {
    /// How much to spend: smoke (seconds, checks the machinery), small (minutes on two cores), gpu (10 to 20
    /// minutes on one), paper (the published recipe)
    #[arg(long, default_value = "small", value_parser = ["smoke", "small", "gpu", "paper"], value_name = "SCALE")]
    pub(crate) scale: String,
    /// Use the first N seeds of the plan, or add more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) seeds: Option<u16>,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub(crate) device: Device,
    /// Hyper-parameters in place of the scale's own (TOML); needs a paper
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Setting {
    pub(crate) fn scale(&self) -> Scale {
        // clap has checked the name
        self.scale.parse().unwrap_or(Scale::Small)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  replica list
  replica list lpa --scale gpu --device cuda
  replica list lpa --json            with the ids of records, for `replica diff`")]
pub(crate) struct ListOptions {
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A trial that has finished is never run twice: its identity is the digest of its configuration, data, code, seed and backend. Checkpoints are always written; after Ctrl-C or a crash --resume goes on from the last one and gives the same bits as a run that was not interrupted. Without it an interrupted trial starts anew.

Examples:
  replica run lpa                          the paper at scale small
  replica run lpa/placement/low_attn       one variant of one experiment
  replica run lpa --seeds 5 --jobs 2       two trials at a time
  replica run lpa --config my.toml         with other hyper-parameters")]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    /// Trials at a time; as many as there are threads on the CPU, 1 on a GPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// Threads for all of them together; all cores if left out. Results do not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Go on with interrupted trials from their last checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Run finished trials again
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is written without --write. Trained experiments need at least 3 seeds at scale small and above, and all data must be verified. Bands that were edited in a golden file are kept.

Examples:
  replica bless lpa                  show what would change
  replica bless lpa --write          change golden/lpa/*.json, then review with git diff")]
pub(crate) struct BlessOptions {
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    /// Write the files
    #[arg(long)]
    pub(crate) write: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportOptions {
    #[command(flatten)]
    pub(crate) setting: Setting,
    /// Open the pages in the browser
    #[arg(long)]
    pub(crate) open: bool,
    /// Show the verdicts kept in this file (JSON lines) as a trend, and add today's to it
    #[arg(long, value_name = "FILE")]
    pub(crate) history: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DataOptions {
    #[command(subcommand)]
    pub(crate) action: DataAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataAction {
    /// List all data sets, or the files of one
    List {
        /// Name of the data set
        name: Option<String>,
    },
    /// Bring data sets here, and verify them
    Fetch {
        /// Names of the data sets
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Hash what is here again; all data sets that are here if none is named
    Verify {
        /// Names of the data sets
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Print where the files of a data set are
    Path {
        /// Name of the data set
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
A record is named by the first digits of its id (`replica list --json`) or by the path of its record.json.

Example:
  replica diff 3fa91c 77b0e2")]
pub(crate) struct DiffOptions {
    /// One record
    #[arg(value_name = "RECORD")]
    pub(crate) left: String,
    /// The other
    #[arg(value_name = "RECORD")]
    pub(crate) right: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The teacher is any server with an OpenAI-compatible interface: REPLICA_TEACHER_URL is its base URL, REPLICA_TEACHER_MODEL the model's name, REPLICA_TEACHER_KEY the key, which local servers do not need. Every answer is kept: after Ctrl-C or an error the same command goes on where it stopped, and no question that has been answered is asked again. Each round shows the model other worked examples and so may bring another program for the same question. Try --first 20 before you ask thousands of questions.

Examples:
  export REPLICA_TEACHER_URL=http://localhost:8000/v1 REPLICA_TEACHER_MODEL=my-model
  replica teach pad --questions gsm8k --first 20 --out programs.jsonl
  replica teach pad --questions gsm8k --rounds 8 --out programs.jsonl --prices 0.5,1.5
  replica teach pad --questions mine.jsonl --out programs.jsonl")]
pub(crate) struct TeachOptions {
    /// The paper whose method asks
    #[arg(value_name = "PAPER", value_parser = ["pad"])]
    pub(crate) paper: String,
    /// gsm8k (its training questions), or a file of JSON lines with question and answer
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) questions: String,
    /// File the right programs are written to, as JSON lines with question, program and answer; replaced if it exists
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// How often each question is asked, with other examples each time
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Ask the first N questions only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) first: Option<u32>,
    /// Requests at a time
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: u16,
    /// Temperature the model samples with
    #[arg(long, value_name = "T", default_value = "0", value_parser = amount)]
    pub(crate) temperature: f64,
    /// Seed the model samples with, for servers that take one
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Seconds to wait for an answer before it is asked for again
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: u32,
    /// What a million tokens sent and a million tokens received cost; the cost is unknown if left out
    #[arg(long, value_name = "SENT,RECEIVED", value_parser = prices)]
    pub(crate) prices: Option<Prices>,
    /// Folder the teacher's answers are kept in; `teacher` in the data cache (REPLICA_CACHE) if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) answers: Option<PathBuf>,
}

fn amount(text: &str) -> Result<f64, String> {
    let amount = text.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    amount.ok_or_else(|| "a number that is not negative is expected".to_owned())
}

fn prices(text: &str) -> Result<Prices, String> {
    let (prompt, completion) =
        text.split_once(',').ok_or("two prices with a comma between them are expected, such as 0.5,1.5")?;
    Ok(Prices { prompt: amount(prompt)?, completion: amount(completion)? })
}

#[derive(Debug, Args)]
#[command(after_help = "\
Both sides start from the same weights and data, take turns on the same cores, and must agree on their losses (exit code 1 if not). PyTorch is used if a Python that can import torch is found: --python, else the variable REPLICA_PYTHON, else python3. Close other programs: times of a busy machine vary, ratios less so.

Examples:
  replica bench                            all workloads that suit this machine
  replica bench decoder-small --rounds 15  one, with a narrower interval
  replica bench --alone --output bench.json
  replica bench --list                     the workloads")]
pub(crate) struct BenchOptions {
    /// What to time; see --list
    #[arg(value_name = "WORKLOAD")]
    pub(crate) workloads: Vec<String>,
    /// List the workloads
    #[arg(long)]
    pub(crate) list: bool,
    /// Threads of each side; all cores if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Turns of each side; below 6 there is no interval
    #[arg(long, value_name = "N", default_value = "7", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Timed steps a turn; as many as fill a second if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) steps: Option<u16>,
    /// The Python to compare with
    #[arg(long, value_name = "PATH", conflicts_with = "alone")]
    pub(crate) python: Option<PathBuf>,
    /// Do not look for a Python
    #[arg(long)]
    pub(crate) alone: bool,
    /// Compare with torch.compile too; it needs a C++ compiler
    #[arg(long)]
    pub(crate) compile: bool,
    /// Also measure what the per-step trace in records costs
    #[arg(long)]
    pub(crate) trace: bool,
    /// Write everything that was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Train one workload on request of another process, by lines on standard input
    #[arg(long, hide = true, requires = "weights")]
    pub(crate) serve: bool,
    /// Weights and data for --serve
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) weights: Option<PathBuf>,
}

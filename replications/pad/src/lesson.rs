//! What a student is taught: problems, a teacher's programs (right, corrupted, several a question), the filter, targets,
//! and broken programs for self-refinement.

use candle_core::{Result as CandleResult, Tensor};
use rand::Rng;
use replica_core::{Seed, TrialError};
use replica_nn::Staging;
use replica_nn::ops::IGNORE;
use replica_train::{Examples, Recipe};
use serde::{Deserialize, Serialize};

use crate::corruption::corrupted;
use crate::exec::{Pool, with_call};
use crate::injection::{Kind, inject};
use crate::problems::Problem;
use crate::source::{Purpose, Source};
use crate::synthesis::{Funnel, filter};
use crate::tokens::Tokens;
use crate::variants::augment;
use crate::vocabulary::Vocabulary;

/// What a student learns to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A program; its answer is what it prints.
    Program,
    /// A chain of thought that ends in "#### " and the answer.
    Chain,
    /// "#### " and the answer.
    Answer,
}

/// What is done with programs that are not right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// They are dropped.
    #[default]
    Execution,
    /// They stay.
    None,
    /// As many programs stay as the filter would keep, but the first ones, whether right or not.
    SameSize,
}

/// How a student is taught to repair programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// From the question, the broken program and the interpreter's message.
    Message,
    /// From the question and the broken program. The authors' released script comes to this: it never calls the
    /// function, so that nothing is said, and its syntax error is a valid program.
    Released,
}

/// Lessons. The same seed gives the same questions whatever is done with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lesson {
    /// Where questions come from.
    pub source: Source,
    /// How many.
    pub questions: usize,
    /// Questions of the validation set.
    pub valid: usize,
    /// What is learnt.
    pub target: Target,
    /// Different programs a question, at most.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub programs: usize,
    /// Share of a teacher's programs that are made wrong.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub corrupted: f64,
    /// What happens to wrong ones.
    #[serde(default)]
    pub filter: Filter,
    /// Half of the examples are broken programs with their repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Lesson {
    /// What makes no sense, as "key = value: what is allowed".
    pub fn problem(&self) -> Option<String> {
        let counts = [("questions", self.questions), ("valid", self.valid), ("programs", self.programs)];
        if let Some((key, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Some(format!("{key} = 0: at least 1 is expected"));
        }
        if !(0.0..=1.0).contains(&self.corrupted) {
            return Some(format!("corrupted = {}: a share in [0, 1] is expected", self.corrupted));
        }
        let of_programs = self.programs > 1 || self.corrupted > 0.0 || self.repair.is_some();
        (self.target != Target::Program && of_programs)
            .then(|| "programs, corrupted and repair: only with target = \"program\"".to_owned())
    }

    /// All right programs of a source.
    pub fn of_programs(source: Source, questions: usize) -> Self {
        let (target, filter) = (Target::Program, Filter::default());
        Self { source, questions, valid: 1, target, programs: 1, corrupted: 0.0, filter, repair: None }
    }

    /// The teacher's programs for the questions: several a question in the order of questions, some of them wrong.
    ///
    /// # Errors
    /// Data that is not there.
    pub fn candidates(&self, seed: Seed, data: &impl Problems) -> Result<Vec<Problem>, TrialError> {
        let questions = data.problems(&self.source, Purpose::Train, self.questions, seed)?;
        let programs = augment(questions, self.programs, seed, "variants");
        Ok(corrupted(&programs, self.corrupted, seed, "corruption"))
    }

    /// Draws the questions, asks the teacher, runs every program, and keeps what the filter says.
    ///
    /// # Errors
    /// Data that is not there, or a worker that cannot be started.
    pub fn prepare(&self, seed: Seed, data: &impl Problems, pool: &Pool) -> Result<Prepared, TrialError> {
        let valid = data.problems(&self.source, Purpose::Valid, self.valid, seed)?;
        let (mut taught, mut funnel) = (self.candidates(seed, data)?, Funnel::default());
        taught.retain(|problem| self.has_target(problem));
        if self.target == Target::Program {
            let candidates = taught;
            let (right, counted) = filter(pool, candidates.clone()).map_err(TrialError::failed)?;
            (taught, funnel) = match self.filter {
                Filter::Execution => (right, counted),
                Filter::None => (candidates, counted),
                Filter::SameSize => (candidates.into_iter().take(right.len()).collect(), counted),
            };
        }
        if taught.is_empty() {
            return Err(TrialError::failed("no example is left: no program of the teacher was right"));
        }
        let mut pairs: Vec<Pair> = taught.iter().map(|problem| self.pair(problem)).collect();
        if let Some(repair) = self.repair {
            pairs.extend(repairs(&taught, repair, seed, pool)?);
        }
        let valid = valid.iter().filter(|p| self.has_target(p)).map(|problem| self.pair(problem)).collect();
        Ok(Prepared { pairs, valid, funnel })
    }

    /// Whether there is anything to learn of a problem.
    fn has_target(&self, problem: &Problem) -> bool {
        match self.target {
            Target::Program => !problem.program.is_empty(),
            Target::Chain => !problem.chain.is_empty(),
            Target::Answer => true,
        }
    }

    fn pair(&self, problem: &Problem) -> Pair {
        let target = match self.target {
            Target::Program => problem.program.clone(),
            Target::Chain => problem.chain.clone(),
            Target::Answer => problem
                .chain
                .rsplit_once("####")
                .map_or_else(|| problem.answer.to_string(), |(_, answer)| format!("#### {}", answer.trim())),
        };
        Pair { source: vec![problem.question.clone()], target }
    }
}

/// Gives the problems of a source.
pub trait Problems {
    /// `count` of them, or all there are. Training questions depend on the seed; those that measure do not.
    ///
    /// # Errors
    /// Data that is missing, damaged or not what the catalogue says.
    fn problems(
        &self,
        source: &Source,
        purpose: Purpose,
        count: usize,
        seed: Seed,
    ) -> Result<Vec<Problem>, TrialError>;
}

/// One broken program a problem, its kind in turn, and the right one. The target keeps its comments, as the broken
/// text does.
fn repairs(problems: &[Problem], repair: Repair, seed: Seed, pool: &Pool) -> Result<Vec<Pair>, TrialError> {
    let kinds = match repair {
        Repair::Message => [Kind::Name, Kind::UnboundLocal, Kind::Syntax],
        Repair::Released => [Kind::Name, Kind::UnboundLocal, Kind::ReleasedSyntax],
    };
    let broken = |(i, problem): (usize, &Problem)| {
        let mut rng = seed.named_stream("injection", &i.to_string());
        let code = inject(&problem.program, kinds[i % 3], || rng.next_u32() % 10_000).ok()?;
        Some((problem.clone(), code))
    };
    let broken: Vec<(Problem, String)> = problems.iter().enumerate().filter_map(broken).collect();
    let messages: Vec<Option<String>> = match repair {
        Repair::Released => vec![None; broken.len()],
        Repair::Message => {
            let programs: Vec<String> = broken.iter().map(|(_, code)| with_call(code)).collect();
            let outcomes = pool.run(&programs).map_err(TrialError::failed)?;
            outcomes.into_iter().map(|outcome| outcome.last_line()).collect()
        }
    };
    let pair = |((problem, code), message): ((Problem, String), Option<String>)| Pair {
        source: question_again(&problem.question, &code, message.as_deref()),
        target: problem.program,
    };
    Ok(broken.into_iter().zip(messages).map(pair).collect())
}

/// What a student sees of a program of its own that failed: question, program, and what the interpreter said.
pub fn question_again(question: &str, program: &str, message: Option<&str>) -> Vec<String> {
    [Some(question), Some(program), message].into_iter().flatten().map(str::to_owned).collect()
}

/// What is read, in parts, and what is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The question, perhaps a broken program and its message.
    pub source: Vec<String>,
    /// The text to be written.
    pub target: String,
}

/// Lessons, ready to be encoded.
pub struct Prepared {
    /// Training examples.
    pub pairs: Vec<Pair>,
    /// Validation examples.
    pub valid: Vec<Pair>,
    /// What became of the teacher's programs.
    pub funnel: Funnel,
}

impl Prepared {
    /// A vocabulary of everything that training shows.
    pub fn vocabulary(&self, fewest: usize) -> Vocabulary {
        let texts = self.pairs.iter().flat_map(|pair| pair.source.iter().chain([&pair.target]));
        Vocabulary::new(texts.map(String::as_str), fewest)
    }
}

/// Most tokens of a source and of a target; what is longer is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Of a source.
    pub source: usize,
    /// Of a target, its end included.
    pub target: usize,
}

/// Encoded examples.
pub struct Encoded {
    pairs: Vec<(Vec<u32>, Vec<u32>)>,
    pad: u32,
    /// Targets that were cut.
    pub cut: usize,
}

impl Encoded {
    /// Encodes examples.
    pub fn new(pairs: &[Pair], tokens: &Tokens, lengths: Lengths) -> Self {
        let mut all_cut = 0;
        let encode = |pair: &Pair| {
            let parts: Vec<&str> = pair.source.iter().map(String::as_str).collect();
            let (source, _) = tokens.sequence(&parts, lengths.source);
            let (target, cut) = tokens.sequence(&[&pair.target], lengths.target);
            all_cut += usize::from(cut);
            (source, target)
        };
        let pairs = pairs.iter().map(encode).collect();
        Self { pairs, pad: tokens.pad(), cut: all_cut }
    }

    /// Mean tokens of a target.
    pub fn mean_target(&self) -> f64 {
        self.pairs.iter().map(|(_, target)| target.len()).sum::<usize>() as f64 / self.pairs.len() as f64
    }
}

/// Some examples on the device.
pub struct Batch {
    /// Sources `[rows, s]`, u32.
    pub ids: Tensor,
    /// 0 where a source is padding, `[rows, s]`, u8.
    pub mask: Tensor,
    /// What the decoder sees `[rows, t]`, u32.
    pub inputs: Tensor,
    /// What is to be written `[rows, t]`, i64.
    pub labels: Tensor,
    /// Target tokens of all rows.
    pub tokens: usize,
}

impl Examples for Encoded {
    type Batch = Batch;
    const UNIT: &'static str = "examples";

    fn count(&self) -> usize {
        self.pairs.len()
    }

    fn units_a_step(&self, recipe: &Recipe) -> u64 {
        recipe.batch_size as u64
    }

    fn staged(&self, indices: &[usize], staging: &mut Staging) -> CandleResult<Batch> {
        let rows: Vec<&(Vec<u32>, Vec<u32>)> = indices.iter().map(|i| &self.pairs[*i]).collect();
        let (ids, mask) = padded(rows.iter().map(|(source, _)| source.as_slice()), self.pad, staging)?;
        let longest = rows.iter().map(|(_, target)| target.len()).max().unwrap_or(1);
        let (mut inputs, mut labels) = (Vec::new(), Vec::new());
        for (_, target) in &rows {
            let fill = longest - target.len();
            inputs.push(self.pad);
            inputs.extend(&target[..target.len() - 1]);
            inputs.extend(std::iter::repeat_n(self.pad, fill));
            labels.extend(target.iter().map(|id| i64::from(*id)));
            labels.extend(std::iter::repeat_n(IGNORE, fill));
        }
        let shape = (rows.len(), longest);
        Ok(Batch {
            ids,
            mask,
            inputs: staging.send(inputs, shape)?,
            labels: staging.send(labels, shape)?,
            tokens: rows.iter().map(|(_, target)| target.len()).sum(),
        })
    }
}

/// Sources filled up to the longest: ids and where they are none.
pub fn padded<'a>(
    sources: impl Iterator<Item = &'a [u32]> + Clone,
    pad: u32,
    staging: &mut Staging,
) -> CandleResult<(Tensor, Tensor)> {
    let (rows, longest) = sources.clone().fold((0, 1), |(n, most), source| (n + 1, most.max(source.len())));
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for source in sources {
        ids.extend_from_slice(source);
        ids.resize(ids.len() + longest - source.len(), pad);
        mask.extend(std::iter::repeat_n(1u8, source.len()));
        mask.resize(ids.len(), 0);
    }
    Ok((staging.send(ids, (rows, longest))?, staging.send(mask, (rows, longest))?))
}

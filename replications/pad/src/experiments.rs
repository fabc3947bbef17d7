//! What a trial does: run a teacher's programs, or teach a student and examine it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use replica_core::{Digest, Measurements, Seed, TrialContext, TrialError, TrialSpec};
use replica_datasets::Sources;
use replica_nn::accelerator;
use serde_json::json;

use crate::checkpoint::CheckpointError;
use crate::config::{Candidates, Course, TrialConfig};
use crate::exam::examine;
use crate::exec::{Limits, Pool, WorkerCommand, with_call};
use crate::judge::judge;
use crate::lesson::{Lesson, Problems, Target};
use crate::source::{Library, Purpose};
use crate::student::{Beginner, Pretrained, Start, Student, Trained, teach};
use crate::synthesis::filter;

/// Problems of every exam that the report shows.
const SHOWN: usize = 3;

/// Parameters of students that are kept for other trials.
const KEPT_PARAMETERS: usize = 64 << 20;

/// What trials share: data, workers, and students that differ in how they answer only.
pub struct School {
    library: Library,
    worker: WorkerCommand,
    pool: OnceLock<Pool>,
    students: Mutex<Students>,
    /// Checkpoints that could not be had, and why: no other trial waits for the hub again.
    unreachable: Mutex<HashMap<String, String>>,
}

/// Students by what determines them, the oldest first.
type Students = VecDeque<(Digest, Arc<Mutex<Option<Arc<Taught>>>>)>;

/// A student and what its lessons came to.
struct Taught {
    trained: Trained,
    examples: usize,
    accepted_share: Option<f64>,
}

impl School {
    /// With data from `sources` and programs in workers started like this.
    pub fn new(sources: Arc<Sources>, worker: WorkerCommand) -> Self {
        Self {
            library: Library::new(sources),
            worker,
            pool: OnceLock::new(),
            students: Mutex::default(),
            unreachable: Mutex::default(),
        }
    }

    /// Runs one trial.
    ///
    /// # Errors
    /// See [`TrialError`].
    pub fn run(&self, spec: &TrialSpec, context: &TrialContext) -> Result<Measurements, TrialError> {
        let seed = Seed(spec.seed);
        match serde_json::from_value(spec.config.clone()).map_err(TrialError::failed)? {
            TrialConfig::Synthesis(candidates) => self.synthesise(&candidates, seed),
            TrialConfig::Student(course) => self.take(&course, seed, context),
        }
    }

    /// The workers, started by whichever trial needs them first.
    fn pool(&self) -> Result<&Pool, TrialError> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = Pool::new(self.worker.clone(), workers, Limits::default()).map_err(TrialError::failed)?;
        Ok(self.pool.get_or_init(|| pool))
    }

    fn synthesise(&self, candidates: &Candidates, seed: Seed) -> Result<Measurements, TrialError> {
        let Candidates { source, count, corrupted } = candidates;
        let lesson = Lesson { corrupted: *corrupted, ..Lesson::of_programs(source.clone(), *count) };
        let offered = lesson.candidates(seed, &self.library)?;
        let without = offered.iter().filter(|problem| problem.program.is_empty()).count();
        let with: Vec<_> = offered.into_iter().filter(|problem| !problem.program.is_empty()).collect();
        let pool = self.pool()?;
        let programs: Vec<String> = with.iter().map(|problem| with_call(&problem.program)).collect();
        let outcomes = pool.run(&programs).map_err(TrialError::failed)?;
        let rounded = outcomes.iter().zip(&with).filter(|(o, p)| judge(o, &p.answer).paper).count();
        let (_, funnel) = filter(pool, with).map_err(TrialError::failed)?;
        let offered = funnel.offered + without;
        let metrics = named([
            ("offered", offered as f64),
            ("no_program", without as f64),
            ("raised", funnel.raised as f64),
            ("limited", funnel.limited as f64),
            ("wrong", funnel.wrong as f64),
            ("accepted", funnel.accepted as f64),
            ("rounded", rounded as f64),
            ("accepted_share", 100.0 * funnel.accepted as f64 / offered as f64),
        ]);
        Ok(Measurements { metrics, data: self.library.data_use(source)?, ..Measurements::default() })
    }

    fn take(&self, course: &Course, seed: Seed, context: &TrialContext) -> Result<Measurements, TrialError> {
        let taught = self.taught(course, seed, context)?;
        let device = accelerator::open(context.device).map_err(|e| TrialError::Device(e.to_string()))?;
        let Taught { trained, examples, accepted_share } = &*taught;
        let student = Student::restored(&course.recipe, trained, &device)?;
        let train_loss = trained.log.curves.get("train_loss").and_then(|c| c.y.last()).copied();
        let mut metrics = named([
            ("valid_loss", trained.valid.0),
            ("valid_nll", trained.valid.1),
            ("target_tokens", trained.targets.0),
            ("cut_targets", trained.targets.1 as f64),
            ("examples", *examples as f64),
            ("parameters", trained.parameters() as f64),
        ]);
        metrics.extend(train_loss.map(|loss| ("train_loss".to_owned(), loss)));
        metrics.extend(accepted_share.map(|share| ("accepted_share".to_owned(), share)));
        if let Some(best) = trained.log.best {
            metrics.extend(named([("steps", trained.log.steps as f64), ("best_step", best.step as f64)]));
        }
        let mut measured = Measurements {
            curves: trained.log.curves.clone(),
            trace: trained.log.trace.clone(),
            data: self.library.data_use(&course.lesson.source)?,
            ..Measurements::default()
        };
        measured.data.extend(trained.checkpoint.clone());
        for exam in &course.exams {
            context.check_cancelled()?;
            let problems = self.library.problems(&exam.source, Purpose::Test, exam.count, seed)?;
            let how = (course.lesson.target, &course.decoding);
            let results = examine(&student, exam, &problems, how, self.pool()?, SHOWN)?;
            metrics.extend(results.metrics);
            measured.transcripts.extend(results.transcripts);
            for used in self.library.data_use(&exam.source)? {
                if !measured.data.iter().any(|known| known.name == used.name) {
                    measured.data.push(used);
                }
            }
        }
        measured.metrics = metrics;
        Ok(measured)
    }

    /// The student of a course: taught now, or by another trial that differs in its exams and its answers only. Which of
    /// the two changes no bit.
    fn taught(&self, course: &Course, seed: Seed, context: &TrialContext) -> Result<Arc<Taught>, TrialError> {
        let Course { student, lesson, recipe, .. } = course;
        let backend = context.device.backend();
        let key = Digest::of_json(&json!([student, lesson, recipe, seed.0, backend]));
        let slot = {
            let mut students = self.students.lock().unwrap_or_else(PoisonError::into_inner);
            match students.iter().find(|(known, _)| *known == key) {
                Some((_, slot)) => slot.clone(),
                None => {
                    let slot = Arc::new(Mutex::new(None));
                    students.push_back((key, slot.clone()));
                    slot
                }
            }
        };
        let mut taught = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taught) = &*taught {
            return Ok(taught.clone());
        }
        let device = accelerator::open(context.device).map_err(|e| TrialError::Device(e.to_string()))?;
        let beginner = self.open(student)?;
        let lessons = lesson.prepare(seed, &self.library, self.pool()?)?;
        let trained = teach(student, beginner, recipe, &lessons, seed, context, &device)?;
        let funnel = lessons.funnel;
        let of_programs = lesson.target == Target::Program;
        let accepted_share = of_programs.then(|| 100.0 * funnel.accepted as f64 / funnel.offered as f64);
        let made = Arc::new(Taught { trained, examples: lessons.pairs.len(), accepted_share });
        *taught = Some(made.clone());
        drop(taught);
        self.forget();
        Ok(made)
    }

    /// What a student is made from; a checkpoint that may be missing and that nobody can give is a reason to leave trials out.
    fn open(&self, start: &Start) -> Result<Beginner, TrialError> {
        let Start::Checkpoint(Pretrained { model: Some(model), optional, .. }) = start else {
            return start.open(self.library.sources()).map_err(|e| TrialError::Data(Box::new(e)));
        };
        let refused = |why: String| match optional {
            true => TrialError::Unavailable(why.into()),
            false => TrialError::Data(why.into()),
        };
        // locked while it is brought here: others that want it wait for it, or for the reason that they cannot have it
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = unreachable.get(model) {
            return Err(refused(why.clone()));
        }
        start.open(self.library.sources()).map_err(|e| match e {
            CheckpointError::Data(e) if e.is_unavailable() => {
                unreachable.insert(model.clone(), e.to_string());
                refused(e.to_string())
            }
            other => TrialError::Data(Box::new(other)),
        })
    }

    /// Lets the oldest students go until those that are left are small enough.
    fn forget(&self) {
        let mut students = self.students.lock().unwrap_or_else(PoisonError::into_inner);
        // one that is being taught is locked, and counts nothing
        let size = |slot: &Mutex<Option<Arc<Taught>>>| {
            slot.try_lock()
                .ok()
                .and_then(|taught| taught.as_ref().map(|t| t.trained.parameters()))
                .unwrap_or(0)
        };
        let mut total: usize = students.iter().map(|(_, slot)| size(slot)).sum();
        while total > KEPT_PARAMETERS {
            let Some((_, oldest)) = students.pop_front() else { break };
            total -= size(&oldest);
        }
    }
}

fn named<const N: usize>(metrics: [(&str, f64); N]) -> BTreeMap<String, f64> {
    metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

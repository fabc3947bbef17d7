//! `configs/<scale>.toml`: every experiment at a scale as data. A study says how a student is taught and examined; each of
//! its variants changes some of that.

use std::collections::BTreeMap;

use replica_core::claim::Direction;
use replica_core::plan::Metric;
use replica_core::replication::{ConfigFile, PlanError};
use replica_core::{Experiment, Plan, Scale, Variant};
use replica_datasets::Sources;
use replica_train::{Recipe, Search};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::exam::{Decoding, Exam};
use crate::lesson::{Lesson, Target};
use crate::source::Source;
use crate::student::Start;

/// A configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What a teacher's programs come to, without a student.
    #[serde(default)]
    synthesis: Vec<SynthesisStudy>,
    /// Students compared.
    #[serde(default)]
    study: Vec<Study>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SynthesisStudy {
    id: String,
    title: String,
    method: String,
    seeds: Vec<u64>,
    #[serde(default)]
    on_request: bool,
    variants: Vec<NamedSynthesis>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedSynthesis {
    id: String,
    label: String,
    description: String,
    candidates: Candidates,
}

/// A comparison of students.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Study {
    id: String,
    title: String,
    method: String,
    /// Everything that is not said here is as in this earlier study.
    like: Option<String>,
    /// Run only when named.
    #[serde(default)]
    on_request: bool,
    /// Run with the scale where its data is at hand, elsewhere only when named.
    #[serde(default)]
    with_data: bool,
    seeds: Vec<u64>,
    tuning: Option<Search>,
    /// A [`Start`].
    #[serde(default)]
    student: Table,
    /// A [`Lesson`].
    #[serde(default)]
    lesson: Table,
    /// A [`Decoding`].
    #[serde(default)]
    decoding: Table,
    /// A [`Recipe`].
    #[serde(default)]
    recipe: Table,
    /// Test sets; the first one's accuracy is the primary metric.
    #[serde(default)]
    exams: Vec<Exam>,
    variants: Vec<Variation>,
}

/// What a variant changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variation {
    id: String,
    label: String,
    description: String,
    #[serde(default)]
    student: Table,
    #[serde(default)]
    lesson: Table,
    #[serde(default)]
    decoding: Table,
    #[serde(default)]
    recipe: Table,
}

/// What one trial does: the variant's config in its spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TrialConfig {
    /// Runs and filters a teacher's programs.
    Synthesis(Candidates),
    /// Teaches a student and examines it.
    Student(Box<Course>),
}

/// A teacher's programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidates {
    /// Where they come from.
    pub source: Source,
    /// How many, at most.
    pub count: usize,
    /// Share that is made wrong.
    #[serde(default)]
    pub corrupted: f64,
}

/// A student's course.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// What it is before.
    pub student: Start,
    /// What it is taught.
    pub lesson: Lesson,
    /// How it answers.
    pub decoding: Decoding,
    /// What it is asked.
    pub exams: Vec<Exam>,
    /// How it is trained; `seq_len` is the most tokens of a target.
    #[serde(flatten)]
    pub recipe: Recipe,
}

/// The experiments of a scale.
///
/// # Errors
/// An unknown key, or a value that makes no sense: the message names file, study, variant and key.
pub fn plan(scale: Scale, given: Option<&ConfigFile>, sources: &Sources) -> Result<Plan, PlanError> {
    let builtin = [
        include_str!("../configs/smoke.toml"),
        include_str!("../configs/small.toml"),
        include_str!("../configs/gpu.toml"),
        include_str!("../configs/paper.toml"),
    ];
    let file = ConfigFile::of_scale("pad", scale, given, builtin);
    let error = |problem: String| PlanError::Config { path: file.path.clone(), problem };
    let config: Config = toml::from_str(&file.text).map_err(|e| error(e.to_string()))?;
    let mut experiments = Vec::new();
    for study in &config.synthesis {
        experiments.push(study.experiment().map_err(|p| error(format!("synthesis `{}`: {p}", study.id)))?);
    }
    let mut studies: Vec<Study> = Vec::new();
    for study in config.study {
        let place = |p: String| error(format!("study `{}`: {p}", study.id));
        let base = match &study.like {
            Some(id) => Some(
                studies
                    .iter()
                    .find(|s| s.id == *id)
                    .ok_or_else(|| place(format!("like = \"{id}\" names no earlier study")))?,
            ),
            None => None,
        };
        let study = study.clone().completed(base);
        experiments.push(study.experiment(sources).map_err(place)?);
        studies.push(study);
    }
    Ok(Plan { scale, config_file: file.path.clone(), experiments })
}

impl SynthesisStudy {
    fn experiment(&self) -> Result<Experiment, String> {
        let one = |v: &NamedSynthesis| {
            if let Some(problem) = v.candidates.source.problem() {
                return Err(format!("variant `{}`: {problem}", v.id));
            }
            Variant::new(&v.id, &v.label, &v.description, &TrialConfig::Synthesis(v.candidates.clone()))
        };
        let mut data = BTreeMap::new();
        self.variants.iter().for_each(|v| data.extend(v.candidates.source.digests()));
        let count = |name: &str, label: &str| Metric::new(name, label, "", None, 0);
        Ok(Experiment {
            id: self.id.clone(),
            title: self.title.clone(),
            method: self.method.clone(),
            metrics: vec![
                Metric::new("accepted_share", "accepted", "%", None, 1),
                count("offered", "offered"),
                count("no_program", "without a program"),
                count("raised", "raised an exception"),
                count("limited", "ended by a limit"),
                count("wrong", "wrong answer"),
                count("accepted", "accepted"),
                count("rounded", "accepted by the authors' rounding rule"),
            ],
            variants: self.variants.iter().map(one).collect::<Result<_, _>>()?,
            seeds: self.seeds.clone(),
            tuning: None,
            data,
            exclusive: false,
            on_request: self.on_request,
        })
    }
}

impl Study {
    fn completed(self, base: Option<&Study>) -> Study {
        let Some(base) = base else { return self };
        Study {
            student: merged(&base.student, &self.student),
            lesson: merged(&base.lesson, &self.lesson),
            decoding: merged(&base.decoding, &self.decoding),
            recipe: merged(&base.recipe, &self.recipe),
            exams: if self.exams.is_empty() { base.exams.clone() } else { self.exams },
            ..self
        }
    }

    fn course(&self, variation: &Variation) -> Result<Course, String> {
        let course = Course {
            student: typed("student", &self.student, &variation.student)?,
            lesson: typed("lesson", &self.lesson, &variation.lesson)?,
            decoding: typed("decoding", &self.decoding, &variation.decoding)?,
            exams: self.exams.clone(),
            recipe: typed("recipe", &self.recipe, &variation.recipe)?,
        };
        let problems = [
            course.student.problem(),
            course.lesson.problem(),
            course.lesson.source.problem(),
            course.decoding.problem(),
            course.recipe.problem(),
            course.exams.iter().find_map(|exam| exam.source.problem()),
            course.exams.iter().find(|e| e.count == 0).map(|e| format!("exam `{}`: count = 0", e.id)),
            (course.decoding.rounds > 0 && course.lesson.target != Target::Program)
                .then(|| "rounds: only with target = \"program\"".to_owned()),
        ];
        problems.into_iter().flatten().next().map_or(Ok(course), Err)
    }

    fn experiment(&self, sources: &Sources) -> Result<Experiment, String> {
        if self.variants.is_empty() || self.seeds.is_empty() || self.exams.is_empty() {
            return Err("at least one variant, one seed and one exam are expected".to_owned());
        }
        let mut variants = Vec::new();
        let mut courses = Vec::new();
        for v in &self.variants {
            let course = self.course(v).map_err(|p| format!("variant `{}`: {p}", v.id))?;
            let config = TrialConfig::Student(Box::new(course.clone()));
            variants.push(Variant::new(&v.id, &v.label, &v.description, &config)?);
            courses.push(course);
        }
        let needed = courses.iter().flat_map(|course| {
            std::iter::once(&course.lesson.source).chain(course.exams.iter().map(|exam| &exam.source))
        });
        let (mut data, mut all_here) = (BTreeMap::new(), true);
        for source in needed {
            data.extend(source.digests());
            all_here &= source.is_here(sources);
        }
        courses.iter().for_each(|course| data.extend(course.student.digests()));
        let recipe = courses.first().map(|course| &course.recipe);
        let tuning = self.tuning.as_ref().zip(recipe).map(|(search, recipe)| search.tuning(recipe));
        Ok(Experiment {
            id: self.id.clone(),
            title: self.title.clone(),
            method: self.method.clone(),
            metrics: metrics(&courses),
            variants,
            seeds: self.seeds.clone(),
            tuning: tuning.transpose()?,
            data,
            exclusive: false,
            on_request: self.on_request || (self.with_data && !all_here),
        })
    }
}

/// What the variants of a study measure.
fn metrics(courses: &[Course]) -> Vec<Metric> {
    let (higher, lower) = (Some(Direction::Higher), Some(Direction::Lower));
    let exams = || courses.first().into_iter().flat_map(|course| &course.exams);
    let any = |holds: &dyn Fn(&Course) -> bool| courses.iter().any(holds);
    let (programs, rounds) = (any(&|c| c.lesson.target == Target::Program), any(&|c| c.decoding.rounds > 0));
    let per_exam = |name: &str, label: &str, better: Option<Direction>| {
        exams()
            .map(|e| {
                Metric::new(&format!("{name}_{}", e.id), &format!("{label}, {}", e.label), "%", better, 1)
            })
            .collect::<Vec<_>>()
    };
    let mut metrics = per_exam("accuracy", "accuracy", higher);
    if rounds {
        metrics.extend(per_exam("first", "accuracy before refinement", higher));
        metrics.extend(per_exam("first_executed", "programs that run before refinement", higher));
    }
    if programs {
        metrics.extend(per_exam("executed", "programs that run", higher));
    }
    metrics.extend(per_exam("strict", "accuracy, strict rule", higher));
    metrics.extend([
        Metric::new("valid_loss", "validation loss a token", "", lower, 4),
        Metric::new("train_loss", "training loss a token", "", lower, 4),
        Metric::new("valid_nll", "validation loss an example", "", lower, 3),
        Metric::new("target_tokens", "tokens a target", "", None, 1),
        Metric::new("cut_targets", "targets cut", "", None, 0),
        Metric::new("examples", "training examples", "", None, 0),
    ]);
    if programs {
        metrics.push(Metric::new("accepted_share", "teacher's programs accepted", "%", None, 1));
    }
    if any(&|c| c.recipe.patience.is_some()) {
        metrics.extend([
            Metric::new("steps", "steps taken", "", None, 0),
            Metric::new("best_step", "step whose weights are left", "", None, 0),
        ]);
    }
    metrics.push(Metric::new("parameters", "parameters", "", None, 0));
    metrics
}

/// The base with a variant's changes, as what it stands for.
fn typed<T: DeserializeOwned>(key: &str, base: &Table, changes: &Table) -> Result<T, String> {
    merged(base, changes).try_into().map_err(|e: toml::de::Error| format!("{key}: {}", e.message()))
}

/// `changes` over `base`, table by table. A table with another `kind` takes the place of the old one.
fn merged(base: &Table, changes: &Table) -> Table {
    if changes.get("kind").is_some_and(|kind| base.get("kind") != Some(kind)) {
        return changes.clone();
    }
    let mut all = base.clone();
    for (key, change) in changes {
        let value = match (all.get(key), change) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => toml::Value::Table(merged(old, new)),
            _ => change.clone(),
        };
        all.insert(key.clone(), value);
    }
    all
}

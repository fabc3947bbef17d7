//! What differs between two records.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::record::Record;

/// The differences between two records.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Parts of the identity other than config, data and code: variant, seed, backend, ...
    pub identity: Vec<Changed>,
    /// Hyper-parameters, by JSON path.
    pub config: Vec<Changed>,
    /// Data digests, by name.
    pub data: Vec<Changed>,
    /// Digest of the sources.
    pub code: Vec<Changed>,
    /// Machine and programs.
    pub environment: Vec<Changed>,
    /// Results.
    pub metrics: Vec<Changed>,
    /// The first step at which the runs part.
    pub trace: Option<Parting>,
}

/// Something with another value on either side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// What it is.
    pub what: String,
    /// On the left; nothing if it is absent.
    pub left: Option<Value>,
    /// On the right.
    pub right: Option<Value>,
}

/// Where two traces part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parting {
    /// Step, counted from 0.
    pub step: usize,
    /// Steps on either side.
    pub steps: (usize, usize),
    /// Loss at that step, unless that side has ended.
    pub loss: (Option<f32>, Option<f32>),
    /// Gradient norm at that step.
    pub gradient_norm: (Option<f32>, Option<f32>),
}

impl Difference {
    /// Compares two records.
    pub fn between(left: &Record, right: &Record) -> Self {
        let spec = |r: &Record| serde_json::to_value(&r.spec).unwrap_or_default();
        let (mut left_spec, mut right_spec) = (spec(left), spec(right));
        let mut part = |key: &str| {
            let take = |v: &mut Value| v.as_object_mut().and_then(|map| map.remove(key));
            let mut changes = Vec::new();
            compare("", take(&mut left_spec).as_ref(), take(&mut right_spec).as_ref(), &mut changes);
            changes
        };
        let (config, mut data, mut code) = (part("config"), part("data"), part("code"));
        for change in code.iter_mut().filter(|c| c.what.is_empty()) {
            change.what = "sources".into();
        }
        let read = |r: &Record| -> Value {
            r.measurements.data.iter().map(|d| (d.name.clone(), Value::from(d.sha256.as_str()))).collect()
        };
        let mut used = Vec::new();
        compare("", Some(&read(left)), Some(&read(right)), &mut used);
        data.extend(used.into_iter().filter(|u| !data.contains(u)).collect::<Vec<_>>());
        let fields = |left: &Value, right: &Value| {
            let mut changes = Vec::new();
            compare("", Some(left), Some(right), &mut changes);
            changes
        };
        let value = |v: &dyn Fn(&Record) -> serde_json::Result<Value>, r| v(r).unwrap_or_default();
        let environment = |r: &Record| serde_json::to_value(&r.environment);
        // through the record's own form, in which infinite values are words
        let metrics = |r: &Record| {
            let measurements = serde_json::to_value(&r.measurements)?;
            Ok(measurements.get("metrics").cloned().unwrap_or_default())
        };
        Self {
            identity: fields(&left_spec, &right_spec),
            config,
            data,
            code,
            environment: fields(&value(&environment, left), &value(&environment, right)),
            metrics: fields(&value(&metrics, left), &value(&metrics, right)),
            trace: parting(left, right),
        }
    }

    /// Whether the two would have to give the same bits, and did.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn parting(left: &Record, right: &Record) -> Option<Parting> {
    let (a, b) = (&left.measurements.trace, &right.measurements.trace);
    let step = a.first_difference(b)?;
    let at =
        |t: &[(u32, u32)]| t.get(step).map(|(loss, norm)| (f32::from_bits(*loss), f32::from_bits(*norm)));
    let (left, right) = (at(&a.0), at(&b.0));
    Some(Parting {
        step,
        steps: (a.0.len(), b.0.len()),
        loss: (left.map(|s| s.0), right.map(|s| s.0)),
        gradient_norm: (left.map(|s| s.1), right.map(|s| s.1)),
    })
}

/// Lists the leaves in which two values differ, by path: `model.layers`, `widths[2]`.
fn compare(path: &str, left: Option<&Value>, right: Option<&Value>, changes: &mut Vec<Changed>) {
    match (left, right) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, a.get(key), b.get(key), changes);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for i in 0..a.len().max(b.len()) {
                compare(&format!("{path}[{i}]"), a.get(i), b.get(i), changes);
            }
        }
        _ if left == right => {}
        _ => changes.push(Changed { what: path.to_owned(), left: left.cloned(), right: right.cloned() }),
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "no difference");
        }
        let rooms = [
            ("identity", &self.identity),
            ("config", &self.config),
            ("data", &self.data),
            ("code", &self.code),
            ("environment", &self.environment),
            ("metrics", &self.metrics),
        ];
        for (name, changes) in rooms.iter().filter(|(_, changes)| !changes.is_empty()) {
            writeln!(f, "{name}")?;
            for change in changes.iter() {
                writeln!(f, "  {change}")?;
            }
        }
        let Some(trace) = &self.trace else { return writeln!(f, "trace\n  the same at every step") };
        let number = |x: Option<f32>| x.map_or("ended".to_owned(), |x| format!("{x:?}"));
        writeln!(f, "trace ({} and {} steps)", trace.steps.0, trace.steps.1)?;
        writeln!(f, "  first differs at step {}", trace.step)?;
        writeln!(f, "  loss: {} -> {}", number(trace.loss.0), number(trace.loss.1))?;
        let (left, right) = (number(trace.gradient_norm.0), number(trace.gradient_norm.1));
        writeln!(f, "  gradient norm: {left} -> {right}")
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |v: &Option<Value>| match v {
            None => "(absent)".to_owned(),
            // digests are recognised by their beginning
            Some(Value::String(s)) if s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit()) => {
                s[..12].to_owned()
            }
            Some(Value::String(s)) => s.clone(),
            Some(v) => v.to_string(),
        };
        write!(f, "{}: {} -> {}", self.what, side(&self.left), side(&self.right))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::digest::Digest;
    use crate::plan::Scale;
    use crate::record::{Environment, Measurements, RECORD_VERSION};
    use crate::trial::{Role, TrialSpec};

    fn record(change: impl FnOnce(&mut TrialSpec, &mut Measurements, &mut Environment)) -> Record {
        let mut spec = TrialSpec {
            paper: "toy".into(),
            experiment: "e".into(),
            variant: "v".into(),
            scale: Scale::Small,
            role: Role::Main,
            seed: 1,
            backend: "cpu".into(),
            dtype: "f32".into(),
            config: json!({"model": {"layers": 2, "widths": [8, 16]}, "learning_rate": 0.1}),
            data: BTreeMap::from([("text/train".into(), Digest::of(b"text"))]),
            code: Digest::of(b"code"),
        };
        let mut measurements = Measurements::default();
        measurements.metrics.insert("loss".into(), 1.5);
        for step in 0..4 {
            measurements.trace.push(step as f32, 1.0);
        }
        let mut environment = Environment { threads: 2, ..Environment::default() };
        change(&mut spec, &mut measurements, &mut environment);
        Record {
            version: RECORD_VERSION,
            id: spec.id(),
            spec,
            measurements,
            environment,
            started_at: 0,
            seconds: 1.0,
            peak_memory_bytes: None,
        }
    }

    #[test]
    fn equal_records_do_not_differ() {
        let same = Difference::between(&record(|_, _, _| ()), &record(|_, _, _| ()));
        assert!(same.is_empty());
        assert_eq!(same.to_string(), "no difference\n");
    }

    #[test]
    fn every_room_is_compared() {
        let left = record(|_, _, _| ());
        let right = record(|spec, measurements, environment| {
            spec.seed = 2;
            spec.config =
                json!({"model": {"layers": 3, "widths": [8]}, "learning_rate": 0.1, "dropout": 0.0});
            spec.data.insert("text/train".into(), Digest::of(b"other"));
            spec.code = Digest::of(b"edited");
            measurements.metrics.insert("loss".into(), f64::INFINITY);
            measurements.trace.0[2].0 = 7f32.to_bits();
            environment.threads = 1;
        });
        insta::assert_snapshot!(Difference::between(&left, &right), @r"
        identity
          seed: 1 -> 2
        config
          dropout: (absent) -> 0.0
          model.layers: 2 -> 3
          model.widths[1]: 16 -> (absent)
        data
          text/train: 982d9e3eb996 -> d9298a10d1b0
        code
          sources: 5694d08a2e53 -> 1fb9f4097256
        environment
          threads: 2 -> 1
        metrics
          loss: 1.5 -> inf
        trace (4 and 4 steps)
          first differs at step 2
          loss: 2.0 -> 7.0
          gradient norm: 1.0 -> 1.0
        ");
    }

    #[test]
    fn a_trace_that_ends_early_differs_where_it_ends() {
        let short = record(|_, measurements, _| measurements.trace.0.truncate(3));
        let difference = Difference::between(&record(|_, _, _| ()), &short);
        let parting = difference.trace.unwrap();
        assert_eq!((parting.step, parting.steps, parting.loss), (3, (4, 3), (Some(3.0), None)));
        assert!(difference.to_string().contains("loss: 3.0 -> ended"));
    }
}

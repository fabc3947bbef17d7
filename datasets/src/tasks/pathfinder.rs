//! Pathfinder: are the two marked ends those of one dashed contour, or of two?
//!
//! Linsley, Kim, Veerabadran, Windolf and Serre, NeurIPS 2018; Kim, Linsley, Thakkar and Serre, ICLR 2020. Drawn here, in
//! the manner of the published generator (github.com/drewlinsley/pathfinder, `snakes2.py`) with the parameters of the
//! Long Range Arena's 32 x 32 version.
//!
//! The same as there: every image has two long snakes of `contour_length` paddles, whatever its label, grown in turns
//! from ends that lie `seed_distance` apart, the first of them in the middle of the image; a paddle follows a paddle over
//! two margins that meet at a joint, turning by an angle whose density is the square of its cosine; shorter snakes are
//! added as distractors, fewer where there is no room (1 to 5, 3.0 on average over 1,000 images of the hard version); discs mark an end of one snake where it began and an end of the
//! same (connected) or of the other one where growth stopped; labels are fair coins; paddles of targets are 0.75 times as
//! bright as those of distractors, which follows from how that program multiplies its contrasts.
//!
//! Our choice: coordinates are real numbers and paddles are kept apart by their distance, not by masks of pixels, so that
//! two paddles are nearer than [`REACH`] exactly if one follows the other and the label can be read off the picture;
//! lines are antialiased by the area they cover, not by shrinking a drawing of twice the size; grey levels are on a fixed
//! scale, not stretched for every image; a direction without room is drawn again 12 times and not left out beforehand.

use rand::Rng;
use rayon::prelude::*;
use replica_core::{Digest, Seed};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::below;
use super::sequences::{Coding, SequenceTask, Sequences, generated};
use crate::Error;

const SIDE: usize = 32;
const PADDING: f64 = 1.0;
const PADDLE_LENGTH: f64 = 2.0;
const PADDLE_THICKNESS: f64 = 0.5;
const PADDLE_MARGIN: f64 = 1.0;
const MARKER_RADIUS: f64 = 1.5;
const SEED_DISTANCE: f64 = 7.0;
const CONTINUITY: f64 = 1.0;
/// Brightness of a fully covered pixel; half of a pixel is the most that a paddle covers.
const TARGET_CONTRAST: f64 = 2.0 * 0.75;
const DISTRACTOR_CONTRAST: f64 = 2.0;
/// Paddles that follow each other are at most this far apart, all others more.
pub const REACH: f64 = 2.0 * PADDLE_MARGIN;
const CLEARANCE: f64 = REACH + PADDLE_THICKNESS / 2.0;
/// How often a paddle, and a distractor, is tried before giving up.
const PADDLE_TRIALS: usize = 12;
const DISTRACTOR_TRIALS: usize = 20;
const PAIR_TRIALS: usize = 100_000;

const PUBLISHED: [(Pathfinder, &str); 2] = [
    (Pathfinder::mini(), "134ab042eaa9edf479a457d38d547e0320a5b9ca3918df99c68aed1b7f32cf26"),
    (Pathfinder::full(), "bb1cae6ed57da74e368ea13d50d8b2f5b4df76904cf0fb30d9eeab84f3a95472"),
];

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pathfinder {
    /// Decides the images; each has a stream of its own.
    pub seed: u64,
    /// Paddles of the two long snakes: 6 is the easy version, 9 the intermediate, 14 the hard one. Distractors have a
    /// third of that, and there are as many as make about 20 paddles.
    pub contour_length: usize,
    /// Images to learn from.
    pub train: usize,
    /// Images to choose by.
    pub valid: usize,
    /// Images to report.
    pub test: usize,
}

/// An image before it is drawn. Coordinates are pixels, down and to the right from the upper left corner of the image.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The two long ones, then the distractors. A snake is its paddles in the order in which they grew.
    pub snakes: Vec<Vec<Paddle>>,
    /// Where the discs are: the beginning of one of the long snakes, and the end of one.
    pub markers: [Point; 2],
    /// Whether these are of one snake.
    pub connected: bool,
}

/// A place, `[down, right]` in pixels.
pub type Point = [f64; 2];

/// A dash.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paddle {
    /// Where it begins.
    pub tail: Point,
    /// Where it ends.
    pub head: Point,
}

impl Pathfinder {
    /// The hard version with the Long Range Arena's sizes.
    pub const fn full() -> Self {
        Self { seed: 0, contour_length: 14, train: 160_000, valid: 20_000, test: 20_000 }
    }

    /// The easy version, small. Our choice.
    pub const fn mini() -> Self {
        Self { seed: 0, contour_length: 6, train: 4_000, valid: 500, test: 500 }
    }

    /// The published SHA-256 of the set, if these are published parameters: of the label and the 1,024 grey levels, a byte
    /// each, of every image of training, validation and test split.
    pub fn published_digest(&self) -> Option<&'static str> {
        PUBLISHED.iter().find(|(parameters, _)| parameters == self).map(|(_, digest)| *digest)
    }

    /// Draws the task. The same parameters give the same images, whatever the number of threads.
    ///
    /// # Errors
    /// The contour's length is none of those that fit.
    pub fn generate(&self) -> Result<SequenceTask, Error> {
        self.check()?;
        let coding = Coding::Pixels { height: SIDE, width: SIDE, mean: 0.0, std: 1.0 };
        let mut hasher = Sha256::new();
        let mut first = 0;
        let [train, valid, test] = [self.train, self.valid, self.test].map(|size| {
            let images: Vec<(Vec<u8>, bool)> = (first..first + size)
                .into_par_iter()
                .map(|index| {
                    let scene = self.draw(index as u64);
                    (scene.render(), scene.connected)
                })
                .collect();
            first += size;
            let mut split = Sequences::new(coding, 1);
            for (pixels, connected) in images {
                hasher.update([u8::from(connected)]);
                hasher.update(&pixels);
                split.push([pixels], connected.into());
            }
            split
        });
        let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let sha256 = Digest::try_from(hex).map_err(|problem| Error::Task { task: "pathfinder", problem })?;
        let bytes = (first * (SIDE * SIDE + 1)) as u64;
        Ok(SequenceTask {
            name: "pathfinder",
            title: format!("Pathfinder-32, generated, contours of {} paddles", self.contour_length),
            classes: 2,
            documents: 1,
            max_len: SIDE * SIDE,
            train,
            valid,
            test,
            files: vec![generated("pathfinder".to_owned(), sha256, bytes, self.published_digest())],
        })
    }

    /// The scene of an image; images are numbered through training, validation and test split.
    ///
    /// # Errors
    /// The contour's length is none of those that fit.
    pub fn scene(&self, index: u64) -> Result<Scene, Error> {
        self.check()?;
        Ok(self.draw(index))
    }

    fn check(&self) -> Result<(), Error> {
        if (3..=14).contains(&self.contour_length) {
            return Ok(());
        }
        let problem = format!(
            "contour_length = {}; allowed are 3 to 14, the published ones are 6, 9 and 14",
            self.contour_length
        );
        Err(Error::Task { task: "pathfinder", problem })
    }

    fn draw(&self, index: u64) -> Scene {
        let mut rng = Seed(self.seed).named_stream("pathfinder", &index.to_string());
        // An attempt at a pair of 14 paddles succeeds far more often than once in a thousand; the bound only makes it
        // certain that this ends.
        let mut snakes = (0..PAIR_TRIALS)
            .find_map(|_| pair(&mut rng, self.contour_length))
            .expect("two snakes of at most 14 paddles fit into the image");
        let length = self.contour_length / 3;
        for _ in 0..20 / length {
            let distractor = (0..DISTRACTOR_TRIALS).find_map(|_| {
                let seed = [uniform(&mut rng, 0.0, SIDE as f64), uniform(&mut rng, 0.0, SIDE as f64)];
                let mut snake = vec![begin(&mut rng, seed)];
                let grown = free(&snake[0], &[], &snakes)
                    && (1..length).all(|_| match extend(&mut rng, &snake, &snakes) {
                        Some(paddle) => {
                            snake.push(paddle);
                            true
                        }
                        None => false,
                    });
                grown.then_some(snake)
            });
            snakes.extend(distractor);
        }
        let connected = below(&mut rng, 2) == 1;
        let origin = below(&mut rng, 2) as usize;
        let terminal = if connected { origin } else { 1 - origin };
        let last = self.contour_length - 1;
        let markers = [snakes[origin][0].tail, snakes[terminal][last].head];
        Scene { snakes, markers, connected }
    }
}

/// Two snakes that grow in turns; none if one of them runs into a dead end.
fn pair(rng: &mut impl Rng, length: usize) -> Option<Vec<Vec<Paddle>>> {
    let (low, high) = (2.0 * SEED_DISTANCE, SIDE as f64 - 2.0 * SEED_DISTANCE);
    let first = [uniform(rng, low, high), uniform(rng, low, high)];
    let [down, right] = unit(angle(rng));
    let second = [first[0] + SEED_DISTANCE * down, first[1] + SEED_DISTANCE * right];
    let mut snakes = vec![vec![begin(rng, first)], vec![begin(rng, second)]];
    if !free(&snakes[1][0], &[], &snakes[..1]) || !free(&snakes[0][0], &[], &[]) {
        return None;
    }
    for _ in 1..length {
        for grown in 0..2 {
            let paddle = extend(rng, &snakes[grown], &snakes[1 - grown..2 - grown])?;
            snakes[grown].push(paddle);
        }
    }
    Some(snakes)
}

/// A first paddle in a random direction.
fn begin(rng: &mut impl Rng, tail: Point) -> Paddle {
    let [down, right] = unit(angle(rng));
    Paddle { tail, head: [tail[0] + PADDLE_LENGTH * down, tail[1] + PADDLE_LENGTH * right] }
}

/// A paddle that follows the last one of a snake; none if there is no room.
fn extend(rng: &mut impl Rng, snake: &[Paddle], others: &[Vec<Paddle>]) -> Option<Paddle> {
    let (last, before) = snake.split_last()?;
    let old = [0, 1].map(|i| (last.head[i] - last.tail[i]) / PADDLE_LENGTH);
    let joint = [0, 1].map(|i| last.head[i] + PADDLE_MARGIN * old[i]);
    (0..PADDLE_TRIALS).find_map(|_| {
        let [cos, sin] = turn(rng);
        let new = [old[0] * cos + old[1] * sin, old[1] * cos - old[0] * sin];
        let tail = [0, 1].map(|i| joint[i] + PADDLE_MARGIN * new[i]);
        let head = [0, 1].map(|i| tail[i] + PADDLE_LENGTH * new[i]);
        let paddle = Paddle { tail, head };
        free(&paddle, before, others).then_some(paddle)
    })
}

/// Whether a paddle lies in the image and away from all others that it does not follow.
fn free(paddle: &Paddle, before: &[Paddle], others: &[Vec<Paddle>]) -> bool {
    let inside = |p: &Point| p.iter().all(|&x| (PADDING..=SIDE as f64 - PADDING).contains(&x));
    let apart = |other: &Paddle| paddle.distance(other) > CLEARANCE;
    inside(&paddle.tail)
        && inside(&paddle.head)
        && before.iter().all(apart)
        && others.iter().flatten().all(apart)
}

/// Cosine and sine of a bend of density cos^2(continuity * angle), by rejection.
fn turn(rng: &mut impl Rng) -> Point {
    loop {
        let bend = uniform(rng, -0.5, 0.5) * std::f64::consts::PI / CONTINUITY;
        if uniform(rng, 0.0, 1.0) < libm::cos(bend * CONTINUITY).powi(2) {
            return [libm::cos(bend), libm::sin(bend)];
        }
    }
}

fn uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0
}

fn angle(rng: &mut impl Rng) -> f64 {
    uniform(rng, 0.0, 2.0 * std::f64::consts::PI)
}

/// With sine and cosine of a library and not the system's: images must not depend on the system.
fn unit(angle: f64) -> Point {
    [libm::sin(angle), libm::cos(angle)]
}

impl Paddle {
    /// The smallest distance of the middle lines of two paddles.
    pub fn distance(&self, other: &Self) -> f64 {
        if self.crosses(other) {
            return 0.0;
        }
        let ends = [
            other.distance_to(self.tail),
            other.distance_to(self.head),
            self.distance_to(other.tail),
            self.distance_to(other.head),
        ];
        ends.into_iter().fold(f64::INFINITY, f64::min)
    }

    /// The distance of its middle line from a point.
    pub fn distance_to(&self, point: Point) -> f64 {
        let along = [self.head[0] - self.tail[0], self.head[1] - self.tail[1]];
        let from = [point[0] - self.tail[0], point[1] - self.tail[1]];
        let squared = along[0] * along[0] + along[1] * along[1];
        let part = ((from[0] * along[0] + from[1] * along[1]) / squared).clamp(0.0, 1.0);
        let (down, right) = (from[0] - part * along[0], from[1] - part * along[1]);
        (down * down + right * right).sqrt()
    }

    fn crosses(&self, other: &Self) -> bool {
        let side = |a: Point, b: Point, p: Point| {
            (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0.0
        };
        let apart = |a: &Self, b: &Self| side(a.tail, a.head, b.tail) != side(a.tail, a.head, b.head);
        apart(self, other) && apart(other, self)
    }
}

impl Scene {
    /// The image: 32 rows of 32 grey levels, black background. What covers a pixel most decides its level.
    pub fn render(&self) -> Vec<u8> {
        let mut image = vec![0.0f64; SIDE * SIDE];
        for (number, snake) in self.snakes.iter().enumerate() {
            let contrast = if number < 2 { TARGET_CONTRAST } else { DISTRACTOR_CONTRAST };
            for paddle in snake {
                let half = PADDLE_THICKNESS / 2.0;
                // a pixel is as wide as 1: how much of its width the line takes
                paint(&mut image, paddle.tail, paddle.head, half, |centre| {
                    let away = paddle.distance_to(centre);
                    contrast * ((away + 0.5).min(half) - (away - 0.5).max(-half)).max(0.0)
                });
            }
        }
        for marker in self.markers {
            paint(&mut image, marker, marker, MARKER_RADIUS, |centre| {
                let (down, right) = (centre[0] - marker[0], centre[1] - marker[1]);
                (MARKER_RADIUS + 0.5 - (down * down + right * right).sqrt()).clamp(0.0, 1.0)
            });
        }
        image.iter().map(|level| (level.min(1.0) * 255.0).round() as u8).collect()
    }
}

/// Brightens the pixels around a line; `level` gives what its centre sees.
fn paint(image: &mut [f64], a: Point, b: Point, radius: f64, level: impl Fn(Point) -> f64) {
    let range = |axis: usize| {
        let low = a[axis].min(b[axis]) - radius - 1.0;
        let high = a[axis].max(b[axis]) + radius + 1.0;
        low.max(0.0) as usize..(high.max(0.0) as usize + 1).min(SIDE)
    };
    for row in range(0) {
        for column in range(1) {
            let pixel = &mut image[row * SIDE + column];
            *pixel = pixel.max(level([row as f64 + 0.5, column as f64 + 0.5]));
        }
    }
}

//! Images read pixel by pixel: handwritten digits and CIFAR-10 in grey.

use rayon::prelude::*;
use replica_core::Seed;
use serde::{Deserialize, Serialize};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::files::{read_all, unreadable};
use super::sequences::{Coding, SequenceTask, Sequences};
use super::shuffled;
use crate::{Error, Sources};

/// The grey level of a colour as the Long Range Arena's pipeline computes it: TensorFlow's `rgb_to_grayscale` on
/// bytes, which works in float32 on the scale 0 to 1 and scales back by 255.5, cut off.
pub fn grey(red: u8, green: u8, blue: u8) -> u8 {
    let part = |level: u8, weight: f32| f32::from(level) * (1.0 / 255.0) * weight;
    ((part(red, 0.2989) + part(green, 0.587) + part(blue, 0.114)) * 255.5) as u8
}

/// Mean and standard deviation of grey CIFAR-10 on the scale 0 to 1, by which S4 normalises it; for
/// [`SequenceTask::scale_pixels`].
pub const S4_CIFAR10: (f32, f32) = (122.6 / 255.0, 61.0 / 255.0);

/// The grey level of a square image of side `side` at a point, 0 to 1 across it and down, interpolated linearly
/// between the centres of pixels and constant beyond the outermost ones.
pub fn sample(image: &[u8], side: usize, down: f32, across: f32) -> f32 {
    let place = |at: f32| {
        let at = (at * side as f32 - 0.5).clamp(0.0, (side - 1) as f32);
        let first = (at as usize).min(side.saturating_sub(2));
        (first, (first + 1).min(side - 1), at - first as f32)
    };
    let ((top, bottom, v), (left, right, h)) = (place(down), place(across));
    let row = |row: usize| {
        let (a, b) = (f32::from(image[row * side + left]), f32::from(image[row * side + right]));
        a + (b - a) * h
    };
    row(top) + (row(bottom) - row(top)) * v
}

/// Handwritten digits that are part of the binary: the 1,797 images of 8 x 8 pixels of the UCI set's test part.
/// 1,197 / 300 / 300 in an order that the seed decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digits {
    /// Side of the images: 8 is what was measured, more is interpolated linearly (see [`sample`]).
    pub side: usize,
    /// Decides the splits and their order.
    pub seed: u64,
}

impl Digits {
    const NAME: &'static str = "optdigits";
    const FORMAT: &'static str = "pixels and labels in float32";
    const MEASURED: usize = 8;

    /// Makes the task.
    ///
    /// # Errors
    /// The side is 0 or more than 64.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        if !(1..=64).contains(&self.side) {
            let problem = format!("side = {}; allowed are 1 to 64", self.side);
            return Err(Error::Task { task: Self::NAME, problem });
        }
        let mut files = read_all(Self::NAME, Self::FORMAT, sources)?;
        let Some((file, bytes)) = files.pop() else { return Err(Error::empty(Self::NAME)) };
        let (images, labels) = Self::parse(&bytes).ok_or_else(|| {
            unreadable(Self::NAME, &file.name, Self::FORMAT)("wrong header or length".to_owned())
        })?;
        let images: Vec<Vec<u8>> = images.iter().map(|image| self.resized(image)).collect();
        let rest = images.len().saturating_sub(600);
        let title = "handwritten digits (UCI optdigits)".to_owned();
        let splits = [rest, 300, 300];
        let mut task = task(Self::NAME, title, self.side, self.seed, splits, &images, &labels);
        task.files = vec![file];
        Ok(task)
    }

    /// Levels 0 to 16 as grey levels 0 to 255, and labels.
    fn parse(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?) as usize);
        let (pixels, count) = (number(0)?, number(8)?);
        let values: Vec<f32> =
            bytes[16..].chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect();
        if pixels != Self::MEASURED * Self::MEASURED || values.len() != count * (pixels + 1) {
            return None;
        }
        let (levels, labels) = values.split_at(count * pixels);
        let grey = |level: &f32| (level * 255.0 / 16.0).round() as u8;
        let images = levels.chunks_exact(pixels).map(|image| image.iter().map(grey).collect()).collect();
        Some((images, labels.iter().map(|&label| label as u8).collect()))
    }

    fn resized(&self, image: &[u8]) -> Vec<u8> {
        if self.side == Self::MEASURED {
            return image.to_vec();
        }
        let at = |index: usize| (index as f32 + 0.5) / self.side as f32;
        let pixel = |i: usize| sample(image, Self::MEASURED, at(i / self.side), at(i % self.side));
        (0..self.side * self.side).map(|i| pixel(i).round() as u8).collect()
    }
}

/// The test images of MNIST, 28 x 28: 8,000 / 1,000 / 1,000 in an order that the seed decides. Its training
/// images are not used, so that numbers are not comparable with those of MNIST itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MnistTest {
    /// Decides the splits and their order.
    pub seed: u64,
}

impl MnistTest {
    const NAME: &'static str = "mnist-test";
    const FORMAT: &'static str = "IDX";

    /// Makes the task.
    ///
    /// # Errors
    /// A file is missing, refused or not of its format.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let read = read_all(Self::NAME, Self::FORMAT, sources)?;
        let [(images_file, images), (labels_file, labels)] = read.as_slice() else {
            return Err(Error::empty(Self::NAME));
        };
        let wrong = |name| unreadable(Self::NAME, name, Self::FORMAT);
        let pixels = idx(images, &[10_000, 28, 28]).map_err(wrong(&images_file.name))?;
        let labels = idx(labels, &[10_000]).map_err(wrong(&labels_file.name))?;
        if labels.iter().any(|&label| label > 9) {
            return Err(wrong(&labels_file.name)("a label is more than 9".to_owned()));
        }
        let images: Vec<&[u8]> = pixels.chunks_exact(28 * 28).collect();
        let title = "MNIST, its test images".to_owned();
        let mut task = task(Self::NAME, title, 28, self.seed, [8_000, 1_000, 1_000], &images, labels);
        task.files = vec![images_file.clone(), labels_file.clone()];
        Ok(task)
    }
}

/// The bytes of an IDX file of these dimensions.
fn idx<'a>(bytes: &'a [u8], dimensions: &[u32]) -> Result<&'a [u8], String> {
    let mut header = vec![0, 0, 8, dimensions.len() as u8];
    header.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
    let items: u32 = dimensions.iter().product();
    match bytes.strip_prefix(header.as_slice()) {
        Some(body) if body.len() == items as usize => Ok(body),
        _ => Err(format!("it does not hold bytes of the dimensions {dimensions:?}")),
    }
}

/// CIFAR-10 in grey, 32 x 32, from a copy in JPEG: 45,000 / 5,000 / 10,000 as in the Long Range Arena. Which training
/// images are kept for validation, and the order of all, is decided by the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cifar10Jpeg {
    /// Decides the validation split and the order.
    pub seed: u64,
}

impl Cifar10Jpeg {
    const NAME: &'static str = "cifar10-jpeg";
    const FORMAT: &'static str = "a tar archive of JPEG images";
    const CLASSES: [&'static str; 10] =
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

    /// Makes the task. Decoding runs in parallel.
    ///
    /// # Errors
    /// A file is missing, refused or not of its format.
    pub fn load(&self, sources: &Sources) -> Result<SequenceTask, Error> {
        let read = read_all(Self::NAME, Self::FORMAT, sources)?;
        let mut images = Vec::new();
        let mut labels = Vec::new();
        for (file, bytes) in &read {
            let (more, classes) =
                Self::parse(bytes).map_err(unreadable(Self::NAME, &file.name, Self::FORMAT))?;
            images.push(more);
            labels.push(classes);
        }
        let ([train, test], [train_labels, test_labels]) = (images.as_slice(), labels.as_slice()) else {
            return Err(Error::empty(Self::NAME));
        };
        let title = "CIFAR-10 (JPEG copy) in grey".to_owned();
        let valid = train.len() / 10;
        let splits = [train.len() - valid, valid, 0];
        let mut task = task(Self::NAME, title, 32, self.seed, splits, train, train_labels);
        let mut rng = Seed(self.seed).named_stream(Self::NAME, "test");
        task.test = split(32, &shuffled(&mut rng, test.len()), test, test_labels);
        task.files = read.into_iter().map(|(file, _)| file).collect();
        Ok(task)
    }

    /// Grey images and their classes, in the order of their paths.
    fn parse(archive: &[u8]) -> Result<(Vec<Vec<u8>>, Vec<u8>), String> {
        let mut members: Vec<(String, u8, &[u8])> = Vec::new();
        let mut reader = tar::Archive::new(archive);
        for member in reader.entries().map_err(|e| e.to_string())? {
            let member = member.map_err(|e| e.to_string())?;
            if !member.header().entry_type().is_file() {
                continue;
            }
            let path = member.path().map_err(|e| e.to_string())?.to_string_lossy().into_owned();
            let folder = path.rsplit('/').nth(1).unwrap_or_default();
            let class = Self::CLASSES.iter().position(|class| *class == folder).ok_or_else(|| {
                format!("`{path}` lies in no folder of a class, which are {}", Self::CLASSES.join(", "))
            })?;
            let start = member.raw_file_position() as usize;
            let bytes = archive.get(start..start + member.size() as usize);
            members.push((path.clone(), class as u8, bytes.ok_or_else(|| format!("`{path}` ends early"))?));
        }
        members.sort();
        let images: Result<Vec<_>, String> = members
            .par_iter()
            .map(|(path, _, jpeg)| decode(jpeg).map_err(|problem| format!("`{path}`: {problem}")))
            .collect();
        Ok((images?, members.iter().map(|(_, class, _)| *class).collect()))
    }
}

/// A JPEG of 32 x 32 pixels in grey.
fn decode(jpeg: &[u8]) -> Result<Vec<u8>, String> {
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
    let pixels = decoder.decode().map_err(|e| format!("{e:?}"))?;
    match decoder.dimensions() {
        Some((32, 32)) => Ok(pixels.chunks_exact(3).map(|p| grey(p[0], p[1], p[2])).collect()),
        other => Err(format!("its size is {other:?}, 32 x 32 is expected")),
    }
}

/// Square images in an order that the seed decides, cut into splits of these sizes.
fn task(
    name: &'static str,
    title: String,
    side: usize,
    seed: u64,
    sizes: [usize; 3],
    images: &[impl AsRef<[u8]>],
    labels: &[u8],
) -> SequenceTask {
    let order = shuffled(&mut Seed(seed).stream(name), images.len());
    let (train, rest) = order.split_at(sizes[0]);
    let (valid, rest) = rest.split_at(sizes[1]);
    let [train, valid, test] =
        [train, valid, &rest[..sizes[2]]].map(|part| split(side, part, images, labels));
    SequenceTask {
        name,
        title,
        classes: 10,
        documents: 1,
        max_len: side * side,
        train,
        valid,
        test,
        files: Vec::new(),
    }
}

fn split(side: usize, items: &[usize], images: &[impl AsRef<[u8]>], labels: &[u8]) -> Sequences {
    let mut split = Sequences::new(Coding::Pixels { height: side, width: side, mean: 0.0, std: 1.0 }, 1);
    for &item in items {
        split.push([images[item].as_ref().iter().copied()], labels[item]);
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_tensorflows() {
        // rgb_to_grayscale of TensorFlow 2 on bytes: white stays white although the weights sum to 0.9999
        let cases = [
            ((255, 255, 255), 255),
            ((0, 0, 0), 0),
            ((255, 0, 0), 76),
            ((0, 255, 0), 149),
            ((0, 0, 255), 29),
        ];
        for ((r, g, b), level) in cases {
            assert_eq!(grey(r, g, b), level, "{r} {g} {b}");
        }
    }

    #[test]
    fn samples_meet_pixels_at_their_centres_and_lie_between_elsewhere() {
        let image = [0, 100, 200, 40];
        let at = |down, across| sample(&image, 2, down, across);
        assert_eq!(
            [at(0.25, 0.25), at(0.25, 0.75), at(0.75, 0.25), at(0.75, 0.75)],
            [0.0, 100.0, 200.0, 40.0]
        );
        assert_eq!([at(0.25, 0.5), at(0.5, 0.25), at(0.5, 0.5)], [50.0, 100.0, 85.0]);
        assert_eq!([at(0.0, 0.0), at(1.0, 1.0), at(0.0, 1.0)], [0.0, 40.0, 100.0]);
        assert_eq!(sample(&[7], 1, 0.3, 0.9), 7.0);
    }

    #[test]
    fn idx_headers_are_checked() {
        assert_eq!(idx(&[0, 0, 8, 1, 0, 0, 0, 2, 5, 6], &[2]).unwrap(), [5, 6]);
        assert!(idx(&[0, 0, 8, 1, 0, 0, 0, 2, 5], &[2]).is_err());
        assert!(idx(&[0, 0, 9, 1, 0, 0, 0, 2, 5, 6], &[2]).is_err());
    }
}

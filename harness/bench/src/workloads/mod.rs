//! One file a model. A new workload is one file and one line here, and a twin in `ci/bench/`.

mod bert;
mod bert_layers;
mod bob;
mod decoder;
mod encoder_decoder;
mod s4d;
mod selective_scan;

use candle_nn::Init;

use crate::workload::Workload;
use bert::Bert;
use bob::Bob;
use decoder::Decoder;
use encoder_decoder::EncoderDecoder;
use s4d::S4d;
use selective_scan::Selective;

pub(crate) fn all() -> Vec<Box<dyn Workload>> {
    vec![
        Box::new(Decoder::SMALL),
        Box::new(Decoder::MEDIUM),
        Box::new(EncoderDecoder::SMALL),
        Box::new(Bert::SMALL),
        Box::new(Bob::SMALL),
        Box::new(S4d::LONG),
        Box::new(Selective::LONG),
        Box::new(Decoder::M130),
        Box::new(Decoder::TINY),
    ]
}

/// N(0, 0.02) for weights and biases: GPT-2's and BERT's weights.
fn normal(_fan_in: usize) -> Init {
    Init::Randn { mean: 0.0, stdev: 0.02 }
}

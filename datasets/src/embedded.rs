//! The data that the build script put into the binary.

use std::io::Read;

use flate2::read::GzDecoder;

/// The files, gzipped, by their name in the catalogue.
const FILES: [(&str, &[u8]); 4] = [
    ("webster-kjv.train.txt", include_bytes!(concat!(env!("OUT_DIR"), "/webster-kjv.train.txt.gz"))),
    ("webster-kjv.valid.txt", include_bytes!(concat!(env!("OUT_DIR"), "/webster-kjv.valid.txt.gz"))),
    ("webster-kjv.test.txt", include_bytes!(concat!(env!("OUT_DIR"), "/webster-kjv.test.txt.gz"))),
    ("optdigits.xy", include_bytes!(concat!(env!("OUT_DIR"), "/optdigits.xy.gz"))),
];

/// An embedded file, unpacked; none if there is none of that name.
pub(crate) fn read(name: &str) -> Option<std::io::Result<Vec<u8>>> {
    let (_, packed) = FILES.iter().find(|(file, _)| *file == name)?;
    let mut bytes = Vec::new();
    Some(GzDecoder::new(*packed).read_to_end(&mut bytes).map(|_| bytes))
}

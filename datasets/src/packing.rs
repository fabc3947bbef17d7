//! Compressed files, told by their names.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Xz,
}

impl Packing {
    /// How a file of that name is packed, and the name of what is inside.
    pub(crate) fn of(name: &str) -> (Self, &str) {
        if let Some(plain) = name.strip_suffix(".gz") {
            (Self::Gzip, plain)
        } else if let Some(plain) = name.strip_suffix(".xz") {
            (Self::Xz, plain)
        } else {
            (Self::Plain, name)
        }
    }

    /// What is inside; none if nothing is packed.
    pub(crate) fn unpack(self, packed: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut unpacked = Vec::new();
        match self {
            Self::Plain => return Ok(None),
            Self::Gzip => MultiGzDecoder::new(packed).read_to_end(&mut unpacked)?,
            Self::Xz => XzReader::new(packed, true).read_to_end(&mut unpacked)?,
        };
        Ok(Some(unpacked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `xz -9e` of "packed, packed, packed\n"
    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x16,
        0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00, 0x16, 0x00, 0x0f, 0x5d, 0x00, 0x38, 0x18, 0x48,
        0x99, 0xcd, 0x5c, 0x1c, 0x72, 0xfb, 0xb1, 0xe3, 0xb7, 0xd1, 0xc0, 0x00, 0x00, 0x00, 0x0a, 0x33, 0xbc,
        0x6d, 0xf0, 0xf9, 0xf1, 0x08, 0x00, 0x01, 0x2b, 0x17, 0x85, 0xcd, 0x25, 0xd5, 0x1f, 0xb6, 0xf3, 0x7d,
        0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    #[test]
    fn xz_is_unpacked_and_damage_noticed() {
        assert_eq!(Packing::Xz.unpack(XZ).unwrap().unwrap(), b"packed, packed, packed\n");
        assert!(Packing::Xz.unpack(&XZ[..XZ.len() - 20]).is_err());
        for at in 0..XZ.len() {
            let mut damaged = XZ.to_vec();
            damaged[at] ^= 1;
            let same = Packing::Xz.unpack(&damaged).is_ok_and(|u| u.unwrap() == b"packed, packed, packed\n");
            assert!(!same, "byte {at}");
        }
    }

    #[test]
    fn names_tell() {
        assert_eq!(Packing::of("a.tsv.xz"), (Packing::Xz, "a.tsv"));
        assert_eq!(Packing::of("a.tar.gz"), (Packing::Gzip, "a.tar"));
        assert_eq!(Packing::of("gz"), (Packing::Plain, "gz"));
    }
}

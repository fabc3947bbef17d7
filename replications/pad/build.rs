//! Digest of the sources that can change a result.

fn main() -> Result<(), replica_provenance::ProvenanceError> {
    replica_provenance::emit_source_digest(&[
        "src",
        "../../harness/nn/src",
        "../../harness/train/src",
        "../../datasets/src",
    ])
}

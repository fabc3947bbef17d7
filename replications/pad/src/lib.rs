//! Program-aided Distillation (Zhu et al., NAACL 2024): a small model learns to write programs that solve problems,
//! from a large model's programs that were run and found right.
//!
//! - [`exec`]: runs programs in worker processes under limits; [`judge`]: whether what they printed is right
//! - [`marks`]: programs from GSM8K's calculator marks
//! - [`synthesis`]: programs that are run and found right become data
//! - [`teacher`]: programs from a model behind an HTTP interface
//! - [`problems`]: word problems from templates
//! - [`injection`]: broken programs for self-refinement
//! - [`verify`]: beam search that scores finished lines

pub mod exec;
pub mod injection;
pub mod judge;
pub mod marks;
pub mod problems;
pub mod synthesis;
pub mod teacher;
pub mod verify;

#[cfg(test)]
mod tests {
    #[test]
    fn the_papers_facts_are_well_formed() {
        let paper = replica_core::Paper::parse(include_str!("../paper.toml"), "paper.toml").unwrap();
        assert_eq!(paper.id, "pad");
    }
}

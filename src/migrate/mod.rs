//! The migration as a whole: what is checked, done and recorded around the pipelines.

pub mod preflight;

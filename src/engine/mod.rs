//! One pipeline.

pub mod state;

//! Values arrive as they were. PostgreSQL itself says what is equal: both sides print every value as text.

mod encodings;
mod large;
mod refused;
mod rows;
mod samples;
mod types;

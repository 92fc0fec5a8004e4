//! Tests of the decoder live in `tests/`; this library is empty.

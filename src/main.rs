//! The `walferry` command.

fn main() {}

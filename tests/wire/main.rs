//! The wire layer against a real server.

mod connecting;
mod liars;
mod moving;
mod server;

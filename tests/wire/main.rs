//! The wire layer against a real server.

mod connecting;
mod moving;
mod server;

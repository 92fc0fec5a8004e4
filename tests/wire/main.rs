//! The wire layer against a real server.

mod connecting;
mod server;

//! End to end: the real program between real servers, while somebody writes, and while things go wrong.
//!
//! CONTRIBUTING.md lists what the environment can say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod ahead;
mod applications;
mod bad_input;
mod blackhole;
mod conflicts;
mod copy;
mod crash;
mod cutover;
mod databases;
mod ddl;
mod drift;
mod dump_restore;
mod extensions;
mod faults;
mod filters;
mod harness;
mod history;
mod hostile;
mod identities;
mod keepalive;
mod lag;
mod meanwhile;
mod owners;
mod partitions;
mod peers;
mod poolers;
mod privileges;
mod protocol;
mod proxy;
mod remove;
mod roles;
mod schema;
mod several;
mod streaming;
mod tail;
mod uncarried;
mod upgrade;
mod values;
mod versions;

//! End to end: the real program between real servers, while somebody writes, and while things go wrong.
//!
//! What the environment can say:
//!
//! | variable | meaning |
//! |---|---|
//! | `WALFERRY_TEST_SEED` | replays the random choices of a run, which prints its seed |
//! | `WALFERRY_TEST_KILLS` | how often `crash` kills the engine; 22 unless told otherwise |
//! | `WALFERRY_TEST_PGBOUNCER` | PgBouncer, if it is not on the path; `poolers` is skipped without |
//! | `WALFERRY_TEST_DATA` | where the sample databases are; `../shared/data` unless told otherwise; skipped where absent |
//! | `WALFERRY_TEST_CASE` | runs the cases of `protocol::changes` and `ddl::statements_for_the_target` whose name holds this |
//! | `WALFERRY_TEST_SCHEMAS` | a directory of applications' schemas for `applications`; skipped without: CONTRIBUTING.md |
//! | `WALFERRY_TEST_LARGE_ROWS` | rows of the transaction in `streaming` that is larger than memory |
//! | `WALFERRY_TEST_VERSIONS` | what `versions`, `keepalive`, `uncarried`, `applications` and `cutover` (the first only) run on: pairs of source and target, `13-15,17-18`, or `all` |

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
mod values;
mod versions;

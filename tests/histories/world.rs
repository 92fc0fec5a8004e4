//! One server: the source, and two targets that follow it, each in its own way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::{Client, Statement};
use walferry::apply::{Applier, ApplyOptions, Tables, TargetSession};
use walferry::assemble::{Assembler, Change, Segment};
use walferry::catalog::{SourceClient, TargetClient};
use walferry::demo::{PgBinaries, Server, ServerOptions};
use walferry::pg::{EndLsn, QualifiedName, RelationId, Resume, SlotName, SourceLsn, SystemId};
use walferry::plan::{Batch, Form, Reason};
use walferry::store::{MigrationRow, Origin, Phase, RelationRow, RelationState, Store};
use walferry::wire::{ConnInfo, Environment};

use crate::cut::Cut;
use crate::generate::{History, Step, Transaction};
use crate::tables::{ALIKE_TEXT, ICU, SINCE_15, TABLES, TYPES, Table};

/// How a target's batches are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Set,
    Ordered,
}

fn applier(session: TargetSession, tables: Tables, way: Way) -> Applier {
    let form = match way {
        Way::Set => Form::Set,
        Way::Ordered => Form::Ordered,
    };
    Applier::new(session, tables, ApplyOptions { form, ..ApplyOptions::default() })
}

/// By table, the text of each of its rows in some order, those that are long cut short.
pub type Rows = BTreeMap<String, Vec<String>>;

/// How many batches went which way: by the target and by what [`Applied::ordered`] said.
pub type Tally = BTreeMap<(&'static str, Option<&'static str>), usize>;

pub struct World {
    source: Client,
    targets: Vec<Target>,
    /// The tables that this server can have.
    pub tables: Vec<&'static Table>,
    /// Gives [`Rows`].
    rows: Statement,
    _server: Server,
}

/// A database that follows the source.
struct Target {
    way: Way,
    info: ConnInfo,
    client: Client,
    /// Gives [`Rows`].
    rows: Statement,
    /// The sessions that ask the catalogs of source and target.
    asked: (Arc<SourceClient>, Arc<TargetClient>),
    /// Between histories; none after a failure.
    session: Option<TargetSession>,
}

/// What a history came to on the source.
struct Decoded {
    segments: Vec<Segment>,
    /// What the tables held before.
    empty: Rows,
    /// By transaction: what the tables then held.
    states: HashMap<u32, Rows>,
    /// Where the stream began.
    begin: EndLsn,
}

const MIGRATION: &str = "default";
const SLOT: &str = "histories";
/// One batch, on a machine busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

impl Way {
    pub const fn database(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Ordered => "ordered",
        }
    }
}

impl World {
    pub async fn start() -> Self {
        let major = std::env::var("WALFERRY_TEST_PG_MAJOR").ok().map(|major| major.parse().unwrap());
        let binaries = match major {
            Some(old) if old < 14 => {
                let clients = PgBinaries::find(None).await.unwrap();
                PgBinaries::find_old(old, &clients).await.unwrap()
            }
            asked => PgBinaries::find(asked).await.unwrap(),
        };
        let server = Server::start(&binaries, ServerOptions::default()).await.unwrap();
        for database in ["source", Way::Set.database(), Way::Ordered.database()] {
            let postgres = server.client("postgres").await.unwrap();
            postgres.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
        }
        let source = client(&server, "source").await;
        let tables = create(&source, |table| table.sql).await;
        run(&source, "CREATE PUBLICATION everything FOR ALL TABLES").await;
        run(&source, &format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")).await;
        let mut targets = Vec::new();
        for way in [Way::Set, Way::Ordered] {
            targets.push(Target::start(&server, &source, way).await);
        }
        let rows = source.prepare(&rows_query(&source).await).await.unwrap();
        Self { source, targets, tables, rows, _server: server }
    }

    /// Runs the history on the source and lets both targets follow it.
    ///
    /// After each batch a target must hold what the source held at that commit, in the end too; and in between, in
    /// the middle of a transaction, others must see none of it.
    pub async fn check(
        &mut self,
        history: &History,
        cuts: [Cut; 2],
        tally: &mut Tally,
    ) -> Result<(), String> {
        let begin = self.reset().await;
        let decoded = self.decode(history, begin).await;
        for (target, cut) in self.targets.iter_mut().zip(cuts) {
            target.follow(&decoded, cut, tally).await?;
        }
        Ok(())
    }

    /// Everything empty, and the stream from here on.
    async fn reset(&mut self) -> EndLsn {
        // TRUNCATE would take longer than most histories.
        let empty: String = self.tables.iter().map(|table| format!("DELETE FROM {};", table.name)).collect();
        let restart = "SELECT setval(format('%I', sequencename), start_value, false) FROM pg_sequences
            WHERE schemaname = 'public'";
        run(&self.source, &format!("{empty}{restart}")).await;
        let advance = format!(
            "SELECT end_lsn::text FROM pg_replication_slot_advance('{SLOT}', pg_current_wal_flush_lsn())"
        );
        let begin: String = self.source.query_one(&advance, &[]).await.unwrap().get(0);
        for target in &mut self.targets {
            if target.session.is_none() {
                // What a failure left behind may still hold locks.
                let session = TargetSession::connect(&target.info, MIGRATION, None).await.unwrap();
                target.session = Some(session);
            }
            run(&target.client, &format!("{empty}UPDATE walferry.progress SET end_lsn = '{begin}'")).await;
        }
        EndLsn::new(begin.parse::<SourceLsn>().unwrap().get())
    }

    async fn decode(&self, history: &History, begin: EndLsn) -> Decoded {
        let empty = rows(&self.source, &self.rows).await;
        let mut states = HashMap::new();
        for transaction in &history.transactions {
            if let Some(xid) = self.write(transaction).await {
                states.insert(xid, rows(&self.source, &self.rows).await);
            }
        }
        let sql = format!(
            "SELECT data FROM pg_logical_slot_get_binary_changes('{SLOT}', NULL, NULL, 'proto_version', '1',
                 'publication_names', 'everything')"
        );
        let mut assembler = Assembler::resuming(begin);
        let taken = self.source.query(&sql, &[]).await.unwrap();
        let take =
            |row| assembler.take(Bytes::from(tokio_postgres::Row::get::<_, Vec<u8>>(&row, 0))).unwrap();
        let segments = taken.into_iter().filter_map(take).collect();
        Decoded { segments, empty, states, begin }
    }

    /// Runs a transaction without what the source refuses of it; says which it was if it wrote something.
    async fn write(&self, transaction: &Transaction) -> Option<u32> {
        let nested = transaction.nested || !self.attempt(transaction, false).await;
        if nested && !self.attempt(transaction, true).await {
            return None;
        }
        let xid = "SELECT (txid_current_if_assigned() % (1::bigint << 32))";
        let xid: Option<i64> = self.source.query_one(xid, &[]).await.unwrap().get(0);
        let end = if transaction.commits { "COMMIT" } else { "ROLLBACK" };
        // What is deferred may be refused here.
        let ended = self.source.batch_execute(end).await.is_ok();
        xid.filter(|_| ended && transaction.commits).map(|xid| u32::try_from(xid).unwrap())
    }

    /// Leaves the transaction open if nothing was refused, or everything that was is taken back.
    async fn attempt(&self, transaction: &Transaction, nested: bool) -> bool {
        run(&self.source, "BEGIN").await;
        for step in &transaction.steps {
            let (text, undone) = match step {
                Step::Do(sql) => (sql.clone(), false),
                Step::Undo(all) => (all.join("; "), true),
            };
            if !nested && !undone {
                if self.source.batch_execute(&text).await.is_err() {
                    run(&self.source, "ROLLBACK").await;
                    return false;
                }
                continue;
            }
            let end = if undone { "ROLLBACK TO s" } else { "RELEASE s" };
            if self.source.batch_execute(&format!("SAVEPOINT s; {text}; {end}")).await.is_err() {
                run(&self.source, "ROLLBACK TO s").await;
            }
        }
        true
    }
}

impl Target {
    async fn start(server: &Server, source: &Client, way: Way) -> Self {
        let client = client(server, way.database()).await;
        create(&client, |table| table.target.unwrap_or(table.sql)).await;
        let info = conninfo(server, way.database());
        let asked_source = SourceClient::connect(&conninfo(server, "source"), "histories").await.unwrap();
        let asked_target = TargetClient::connect(&info, "histories").await.unwrap();
        begin(source, &asked_target).await;
        let asked = (Arc::new(asked_source), Arc::new(asked_target));
        let rows = client.prepare(&rows_query(source).await).await.unwrap();
        Self { way, info, client, rows, asked, session: None }
    }

    /// A session, and a fresh look at the catalogs, as after a restart.
    async fn applier(&mut self) -> Applier {
        let (source, target) = &self.asked;
        let rows = Store::new(target, MIGRATION).relations().await.unwrap();
        let tables = Tables::new(Arc::clone(source), Arc::clone(target), MIGRATION, rows).await.unwrap();
        applier(self.session.take().unwrap(), tables, self.way)
    }

    async fn follow(&mut self, decoded: &Decoded, cut: Cut, tally: &mut Tally) -> Result<(), String> {
        let mut applier = self.applier().await;
        let batches = cut.batches(&decoded.segments);
        let count = batches.len();
        let (mut previous, mut expected, mut emptied) = (decoded.begin, &decoded.empty, false);
        for (number, segments) in batches.into_iter().enumerate() {
            let told =
                format!("{}, batch {} of {count}, {}", self.way.database(), number + 1, describe(&segments));
            emptied |= segments.iter().flat_map(|s| &s.changes).any(|c| matches!(c, Change::Truncate { .. }));
            let committed = segments.last().and_then(|last| Some((last.xid.get(), last.end?)));
            let ordered = self.apply(&mut applier, previous, segments).await;
            let ordered = ordered.map_err(|error| format!("{told}: {error}"))?;
            *tally.entry((self.way.database(), ordered)).or_default() += 1;
            if let Some((xid, end)) = committed {
                (previous, emptied) = (end, false);
                let state = decoded.states.get(&xid);
                expected = state.ok_or_else(|| format!("{told}: no transaction {xid} was committed"))?;
            }
            // Nobody can look into a table that is being emptied.
            if emptied {
                continue;
            }
            let found = rows(&self.client, &self.rows).await;
            differences(expected, &found).map_err(|text| format!("{told}:\n{text}"))?;
            let stored = value(&self.client, "SELECT end_lsn::text FROM walferry.progress").await;
            if stored != previous.to_string() {
                return Err(format!("{told}: walferry.progress holds {stored}, not {previous}"));
            }
        }
        self.session = Some(applier.into_session().await.map_err(|error| error.to_string())?);
        Ok(())
    }

    async fn apply(
        &self,
        applier: &mut Applier,
        previous: EndLsn,
        segments: Vec<Segment>,
    ) -> Result<Option<&'static str>, String> {
        let whole = segments.iter().filter(|segment| segment.end.is_some()).count() as u64;
        let changes: usize = segments.iter().map(|segment| segment.changes.len()).sum();
        let cost = segments.iter().map(|segment| segment.cost).sum();
        let applied = tokio::time::timeout(PATIENCE, applier.apply(Batch { segments, previous, cost })).await;
        let applied = applied.map_err(|_| "not applied in time".to_owned())?;
        let applied = applied.map_err(|error| format!("{error:?}"))?;
        if applied.transactions != whole || applied.changes.iter().sum::<u64>() != changes as u64 {
            return Err(format!("{changes} changes, {whole} commits, but {applied:?}"));
        }
        Ok(applied.ordered.map(Reason::as_str))
    }
}

async fn client(server: &Server, database: &str) -> Client {
    let client = server.client(database).await.unwrap();
    let pinned = "SET search_path = public, pg_catalog; SET DateStyle = ISO; SET IntervalStyle = postgres;
        SET extra_float_digits = 3; SET TimeZone = UTC; SET bytea_output = hex; SET jit = off;
        SET plan_cache_mode = force_generic_plan; SET max_parallel_workers_per_gather = 0";
    run(&client, pinned).await;
    client
}

fn conninfo(server: &Server, database: &str) -> ConnInfo {
    let none: [(&str, &str); 0] = [];
    ConnInfo::parse(&server.superuser_uri(database), &Environment::from_map(none)).unwrap()
}

/// Makes the tables; gives those that this server can have.
async fn create(client: &Client, sql: impl Fn(&Table) -> &'static str) -> Vec<&'static Table> {
    run(client, TYPES).await;
    for table in TABLES {
        run(client, sql(table)).await;
    }
    let mut tables: Vec<&Table> = TABLES.iter().collect();
    if value(client, "SELECT (current_setting('server_version_num')::int >= 150000)::text").await == "true" {
        run(client, SINCE_15).await;
    }
    // A server may be built without it, and still have its collations.
    if client.batch_execute(ICU).await.is_ok() {
        tables.push(&ALIKE_TEXT);
    }
    tables
}

/// What a migration has on its target when all is copied, which was nothing.
async fn begin(source: &Client, target: &TargetClient) {
    let store = Store::new(target, MIGRATION);
    store.create().await.unwrap();
    let row = MigrationRow {
        name: MIGRATION.to_owned(),
        dbname: "source".to_owned(),
        phase: Phase::Syncing,
        ended: None,
        method: walferry::config::Method::Replication,
        method_reason: String::new(),
        dumped_at: String::new(),
        error: String::new(),
        system_id: SystemId::new(1),
        slot: SlotName::new(SLOT).unwrap(),
        publications: vec!["everything".to_owned()],
        selection: walferry::config::Selection::default(),
        started_at: None,
    };
    store.begin(&row).await.unwrap();
    store.begin_progress(&Resume::at(EndLsn::ZERO)).await.unwrap();
    let sql = "SELECT relname::text, oid, relfilenode, relnatts FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    for table in source.query(sql, &[]).await.unwrap() {
        let origin =
            Origin { id: RelationId::new(table.get(1)), filenode: table.get(2), attributes: table.get(3) };
        let row = RelationRow {
            name: QualifiedName::new("public", table.get::<_, String>(0)),
            state: RelationState::Copied,
            copy_lsn: Some(SourceLsn::ZERO),
            rows_copied: 0,
            bytes_copied: 0,
            rows_estimated: 0,
            bytes_estimated: 0,
            origin: Some(origin),
            definition: None,
            target_oid: None,
        };
        store.begin_relations(std::slice::from_ref(&row)).await.unwrap();
        store.set_relation(&row).await.unwrap();
    }
}

/// The query for [`Rows`]: of every table the columns that the source has.
async fn rows_query(source: &Client) -> String {
    let sql = "SELECT string_agg(format(
            'SELECT %L, coalesce(array_agg(r ORDER BY r COLLATE \"C\"), ''{}'') FROM (
                SELECT CASE WHEN length(r) > 150 THEN left(r, 100) || ''… '' || md5(r) ELSE r END AS r
                FROM (SELECT ROW(%s)::text AS r FROM ONLY %I) s) s', relname, columns, relname), ' UNION ALL ')
        FROM (SELECT relname, string_agg(quote_ident(attname), ', ' ORDER BY attnum) AS columns
            FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 GROUP BY 1) s";
    value(source, sql).await
}

async fn rows(client: &Client, query: &Statement) -> Rows {
    let rows = client.query(query, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Rows that the target has too few (-) or too many (+).
fn differences(expected: &Rows, found: &Rows) -> Result<(), String> {
    let mut told = String::new();
    for (table, expected) in expected {
        let mut extra: Vec<&String> = found[table].iter().collect();
        let mut missing = Vec::new();
        for row in expected {
            match extra.iter().position(|other| *other == row) {
                Some(position) => drop(extra.swap_remove(position)),
                None => missing.push(row),
            }
        }
        let lines = missing.into_iter().map(|row| ('-', row)).chain(extra.into_iter().map(|row| ('+', row)));
        told.extend(lines.map(|(sign, row)| format!("{sign} {table} {row:?}\n")));
    }
    if expected == found { Ok(()) } else { Err(told) }
}

fn describe(segments: &[Segment]) -> String {
    let part = segments.iter().any(|segment| !segment.first || segment.end.is_none());
    let transactions: Vec<String> = segments.iter().map(|segment| segment.xid.to_string()).collect();
    format!("{} {}", if part { "part of" } else { "transactions" }, transactions.join(" "))
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| unreachable!("{sql}: {error:?}"));
}

async fn value(client: &Client, sql: &str) -> String {
    let row = client.query_one(sql, &[]).await.unwrap_or_else(|error| unreachable!("{sql}: {error:?}"));
    row.get(0)
}

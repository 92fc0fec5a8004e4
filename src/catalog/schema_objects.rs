//! What hangs on tables or stands beside them, each with the statement that makes it: indexes, constraints, column defaults,
//! views, functions, triggers, rules, sequences, domains with their constraints, enums with their labels.
//!
//! Left out: what is a part of an extension, or of another object (the indexes, constraints and triggers of partitions
//! that come with those of the table above; indexes of constraints), functions of languages that only a superuser may
//! use, NOT NULL and what of a column is in its table's definition; of a domain its default and NOT NULL.
//!
//! The texts are the server's own, by `pg_get_indexdef` and the like, with the schema of each name outside `pg_catalog`: so
//! they can be pasted anywhere, and two of one server are equal where the objects are. Those functions show what is now
//! and not what a snapshot shows. The text of a view or a function of SQL waits for whoever has locked a table of it.

use std::fmt;

use super::{Error, SideClient, SourceClient, ask, dialect};
use crate::pg::{Oid, QualifiedName, QuotedName, Sql};
use serde::{Deserialize, Serialize};

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaObjectKind {
    /// An index that is no constraint's.
    Index,
    /// CHECK, PRIMARY KEY, UNIQUE, EXCLUDE, FOREIGN KEY.
    Constraint,
    /// The default of a column; not what a generated one is computed by.
    Default,
    /// A view.
    View,
    /// A materialised view, without its rows.
    MaterializedView,
    /// A function, procedure or aggregate.
    Function,
    /// A trigger, and whether it is enabled.
    Trigger,
    /// A rule that is not a view's own, and whether it is enabled.
    Rule,
    /// A sequence, without where it stands; not an identity column's.
    Sequence,
    /// A domain, without its constraints.
    Domain,
    /// A CHECK constraint of a domain.
    DomainConstraint,
    /// An enum, without its labels.
    Enum,
    /// A label of an enum, and which one it comes after.
    EnumLabel,
}

/// Which object it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemaObjectKey {
    /// What it is.
    pub kind: SchemaObjectKind,
    /// Its table, or view, or of a sequence the table that has it, or its domain or enum; of what stands by itself, its schema
    /// and an empty name.
    pub of: QualifiedName,
    /// Its name; a default's is that of its column, and a function's is SQL, with the types of its parameters.
    pub name: String,
}

/// An object as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaObject {
    /// Which it is.
    pub key: SchemaObjectKey,
    /// Its identifier, in the catalog of its kind.
    pub oid: Oid,
    /// What CREATE OR REPLACE does not change: it works where this begins with what the one that is there has. Of a view or
    /// function; of a default, its expression; else empty.
    pub shape: String,
    /// What makes it, without the last semicolon.
    pub statement: String,
}

impl SchemaObjectKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Index,
        Self::Constraint,
        Self::Default,
        Self::View,
        Self::MaterializedView,
        Self::Function,
        Self::Trigger,
        Self::Rule,
        Self::Sequence,
        Self::Domain,
        Self::DomainConstraint,
        Self::Enum,
        Self::EnumLabel,
    ];

    /// The name, as stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Constraint => "constraint",
            Self::Default => "default",
            Self::View => "view",
            Self::MaterializedView => "materialized view",
            Self::Function => "function",
            Self::Trigger => "trigger",
            Self::Rule => "rule",
            Self::Sequence => "sequence",
            Self::Domain => "domain",
            Self::DomainConstraint => "domain constraint",
            Self::Enum => "enum",
            Self::EnumLabel => "enum label",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl SchemaObjectKey {
    /// What it is in the way of: a view, materialised or not, has one place.
    pub fn place(&self) -> (SchemaObjectKind, &QualifiedName, &str) {
        let kind = match self.kind {
            SchemaObjectKind::MaterializedView => SchemaObjectKind::View,
            kind => kind,
        };
        (kind, &self.of, &self.name)
    }

    /// The view that it is, if it is one.
    pub fn view(&self) -> Option<QualifiedName> {
        let view = matches!(self.kind, SchemaObjectKind::View | SchemaObjectKind::MaterializedView);
        view.then(|| QualifiedName::new(self.of.schema.clone(), self.name.clone()))
    }

    /// The table or view that it is on, if it is on one.
    pub fn relation(&self) -> Option<&QualifiedName> {
        let of_type = matches!(self.kind, SchemaObjectKind::DomainConstraint | SchemaObjectKind::EnumLabel);
        (!of_type && !self.of.name.is_empty()).then_some(&self.of)
    }

    /// The statement that drops it, without a semicolon; nothing where it cannot be dropped.
    pub fn drop(&self) -> Sql {
        let alter = || Sql::new("ALTER TABLE ").name(&self.of);
        let named = |drop: &'static str| Sql::new(drop).ident(&self.of.schema).text(".");
        match self.kind {
            SchemaObjectKind::Index => named("DROP INDEX ").ident(&self.name),
            SchemaObjectKind::Constraint => alter().text(" DROP CONSTRAINT ").ident(&self.name),
            SchemaObjectKind::Default => {
                alter().text(" ALTER COLUMN ").ident(&self.name).text(" DROP DEFAULT")
            }
            SchemaObjectKind::View => named("DROP VIEW ").ident(&self.name),
            SchemaObjectKind::MaterializedView => named("DROP MATERIALIZED VIEW ").ident(&self.name),
            SchemaObjectKind::Function => named("DROP ROUTINE ").catalog(&self.name),
            SchemaObjectKind::Sequence => named("DROP SEQUENCE ").ident(&self.name),
            SchemaObjectKind::Domain => named("DROP DOMAIN ").ident(&self.name),
            SchemaObjectKind::Enum => named("DROP TYPE ").ident(&self.name),
            SchemaObjectKind::DomainConstraint => {
                Sql::new("ALTER DOMAIN ").name(&self.of).text(" DROP CONSTRAINT ").ident(&self.name)
            }
            SchemaObjectKind::EnumLabel => Sql::default(),
            SchemaObjectKind::Rule => Sql::new("DROP RULE ").ident(&self.name).text(" ON ").name(&self.of),
            SchemaObjectKind::Trigger => {
                Sql::new("DROP TRIGGER ").ident(&self.name).text(" ON ").name(&self.of)
            }
        }
    }
}

/// `index public.by_name`, `constraint "Odd one" of public.t`.
impl fmt::Display for SchemaObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, of, name } = self;
        let schema = QuotedName(&of.schema);
        match kind {
            SchemaObjectKind::Default => write!(f, "default of column {} of {of}", QuotedName(name)),
            SchemaObjectKind::Constraint
            | SchemaObjectKind::Trigger
            | SchemaObjectKind::Rule
            | SchemaObjectKind::DomainConstraint
            | SchemaObjectKind::EnumLabel => {
                write!(f, "{} {} of {of}", kind.as_str(), QuotedName(name))
            }
            SchemaObjectKind::Function => write!(f, "function {schema}.{name}"),
            SchemaObjectKind::Index
            | SchemaObjectKind::View
            | SchemaObjectKind::MaterializedView
            | SchemaObjectKind::Sequence
            | SchemaObjectKind::Domain
            | SchemaObjectKind::Enum => {
                write!(f, "{} {schema}.{}", kind.as_str(), QuotedName(name))
            }
        }
    }
}

/// Every such object of the current database, in the order in which they were made or last changed.
///
/// # Errors
/// When the server does not answer.
pub async fn schema_objects(client: &SideClient) -> Result<Vec<SchemaObject>, Error> {
    let dialect = dialect(client).await?;
    let sql = Sql::new("WITH relation AS (")
        .text(RELATIONS)
        .text("), type AS (")
        .text(DOMAINS_AND_ENUMS)
        .text("), found AS (")
        .text(INDEXES)
        .text(" UNION ALL ")
        .text(CONSTRAINTS)
        .text(dialect.constraint_of_itself())
        .text(" UNION ALL ")
        .text(DEFAULTS)
        .text(dialect.generated())
        .text(" = '' UNION ALL ")
        .text(VIEWS)
        .text(" UNION ALL SELECT 'function', p.oid, p.xmin, n.nspname, '', ")
        .text("quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')', ")
        .text(dialect.routine_kind())
        .text(FUNCTIONS)
        .text(" AND ")
        .text(dialect.routine_kind())
        .text(" <> 'a' UNION ALL SELECT 'trigger', g.oid, g.xmin, r.nspname, r.relname, g.tgname, '', ")
        .text(dialect.trigger_definition())
        .text(TRIGGERS)
        .text(dialect.trigger_of_itself())
        .text(" UNION ALL ")
        .text(RULES)
        .text(" UNION ALL ")
        .text(SEQUENCES)
        .text(" UNION ALL ")
        .text(AGGREGATES)
        .text(" UNION ALL ")
        .text(TYPES)
        .text(
            ") SELECT kind, oid, schema::text AS schema, relation::text AS name, object::text AS object, shape, \
             statement FROM found ORDER BY age(version) DESC, oid",
        );
    let rows = ask::rows(client, "the indexes, views and functions", &sql, &[]).await?;
    let mut objects = Vec::with_capacity(rows.len());
    for row in &rows {
        // One that was dropped just now has no text.
        let (Some(shape), Some(statement)) = (row.get("shape")?, row.get("statement")?) else { continue };
        let kind = SchemaObjectKind::from_name(row.get("kind")?).ok_or_else(|| row.unexpected("kind"))?;
        objects.push(SchemaObject {
            key: SchemaObjectKey { kind, of: row.name()?, name: row.get("object")? },
            oid: Oid::new(row.get("oid")?),
            shape,
            statement,
        });
    }
    Ok(objects)
}

/// Another text whenever one of the objects that [`schema_objects`] gives, or a name in one of their statements, is another:
/// far cheaper than these, and often another one for nothing.
///
/// Each row that is changed gets a greater `xmin` than any before, so the sum of all of them never comes back.
///
/// # Errors
/// When the server does not answer.
pub async fn schema_version(client: &SourceClient) -> Result<String, Error> {
    let sql = Sql::new(
        "WITH relation AS (SELECT c.oid, hashtext(concat_ws(' ', c.oid, c.relnamespace, c.relname, c.relkind, \
         c.reloptions))::int8 AS hash FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'i', 'I', 'S') \
         AND c.relpersistence <> 't' AND c.oid >= 16384) SELECT concat_ws(' ', \
         (SELECT concat_ws('.', count(*), sum(hash)) FROM relation), \
         (SELECT concat_ws('.', count(*), sum(a.xmin::text::int8)) FROM pg_attribute a JOIN relation r \
           ON r.oid = a.attrelid WHERE a.attnum > 0), \
         (SELECT concat_ws('.', count(*), sum(x.xmin::text::int8)) FROM pg_index x JOIN relation r ON r.oid = x.indrelid), \
         (SELECT concat_ws('.', count(*), sum(k.xmin::text::int8)) FROM pg_constraint k JOIN relation r \
           ON r.oid = k.conrelid), \
         (SELECT concat_ws('.', count(*), sum(k.xmin::text::int8)) FROM pg_constraint k WHERE k.contypid <> 0), \
         (SELECT concat_ws('.', count(*), sum(e.xmin::text::int8)) FROM pg_enum e), \
         (SELECT concat_ws('.', count(*), sum(d.xmin::text::int8)) FROM pg_attrdef d JOIN relation r ON r.oid = d.adrelid), \
         (SELECT concat_ws('.', count(*), sum(w.xmin::text::int8)) FROM pg_rewrite w JOIN relation r ON r.oid = w.ev_class), \
         (SELECT concat_ws('.', count(*), sum(g.xmin::text::int8)) FROM pg_trigger g JOIN relation r ON r.oid = g.tgrelid), \
         (SELECT concat_ws('.', count(*), sum(q.xmin::text::int8)) FROM pg_sequence q JOIN relation r ON r.oid = q.seqrelid), \
         (SELECT concat_ws('.', count(*), sum(p.xmin::text::int8)) FROM pg_proc p), \
         (SELECT concat_ws('.', count(*), sum(n.xmin::text::int8)) FROM pg_namespace n \
           WHERE n.nspname NOT LIKE 'pg\\_%temp\\_%'), \
         (SELECT concat_ws('.', count(*), sum(t.xmin::text::int8)) FROM pg_type t WHERE t.typrelid = 0 AND t.typelem = 0)) \
         AS version",
    );
    ask::row(client, "the version of the schema", &sql, &[]).await?.get("version")
}

/// Tables and views of users; `pg_class c`.
const RELATIONS: &str = "SELECT c.oid, n.nspname, c.relname, c.relkind, c.reloptions, \
     quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS quoted \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relpersistence <> 't' \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
     AND d.deptype = 'e')";

/// That of a partitioned table is shown with ONLY, as if its partitions had none.
const INDEXES: &str = "SELECT 'index' AS kind, c.oid, x.xmin AS version, r.nspname AS schema, r.relname AS relation, \
     c.relname AS object, '' AS shape, CASE c.relkind WHEN 'I' THEN overlay(pg_get_indexdef(c.oid) PLACING '' \
     FROM length('CREATE INDEX  ON ' || quote_ident(c.relname)) + CASE WHEN x.indisunique THEN 8 ELSE 1 END FOR 5) \
     ELSE pg_get_indexdef(c.oid) END AS statement \
     FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN relation r ON r.oid = x.indrelid \
     WHERE (x.indisvalid OR c.relkind = 'I') AND x.indisready \
     AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')) \
     AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid)";

const CONSTRAINTS: &str = "SELECT 'constraint', k.oid, k.xmin, r.nspname, r.relname, k.conname, '', \
     'ALTER TABLE ' || r.quoted || ' ADD CONSTRAINT ' || quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid) \
     FROM pg_constraint k JOIN relation r ON r.oid = k.conrelid WHERE k.contype IN ('c', 'f', 'p', 'u', 'x') \
     AND (k.conislocal OR k.coninhcount = 0) AND ";

/// OFFSET keeps the text from being made twice.
const DEFAULTS: &str = "SELECT 'default', d.oid, d.xmin, r.nspname, r.relname, a.attname, e.text, \
     'ALTER TABLE ' || r.quoted || ' ALTER COLUMN ' || quote_ident(a.attname) || ' SET DEFAULT ' || e.text \
     FROM pg_attrdef d JOIN relation r ON r.oid = d.adrelid \
     JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum, \
     LATERAL (SELECT pg_get_expr(d.adbin, d.adrelid) AS text OFFSET 0) e WHERE NOT a.attisdropped AND ";

/// The rows of a materialised one come at cutover.
const VIEWS: &str = "SELECT CASE r.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, r.oid, w.xmin, r.nspname, '', \
     r.relname, coalesce((SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || E'\\n', '' \
     ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped), ''), \
     CASE r.relkind WHEN 'v' THEN 'CREATE OR REPLACE VIEW ' ELSE 'CREATE MATERIALIZED VIEW ' END || r.quoted \
     || coalesce(' WITH (' || array_to_string(r.reloptions, ', ') || ')', '') || E' AS\\n' \
     || rtrim(pg_get_viewdef(r.oid), ';') || CASE r.relkind WHEN 'v' THEN '' ELSE E'\\n WITH NO DATA' END \
     FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.rulename = '_RETURN' WHERE r.relkind IN ('v', 'm')";

/// What follows the kind, which is the beginning of the shape.
const FUNCTIONS: &str = " || ' ' || pg_get_function_identity_arguments(p.oid) || ' ' \
     || coalesce(pg_get_function_result(p.oid), '') || E'\\n' || repeat(E'default\\n', p.pronargdefaults), \
     rtrim(pg_get_functiondef(p.oid), E'\\n') \
     FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang \
     WHERE l.lanpltrusted AND n.nspname NOT LIKE 'pg\\_temp\\_%' \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid \
     AND d.deptype IN ('e', 'i'))";

/// What follows its definition.
const TRIGGERS: &str = " || CASE g.tgenabled WHEN 'O' THEN '' ELSE '; ALTER TABLE ' || r.quoted || CASE g.tgenabled \
     WHEN 'D' THEN ' DISABLE' WHEN 'R' THEN ' ENABLE REPLICA' ELSE ' ENABLE ALWAYS' END || ' TRIGGER ' \
     || quote_ident(g.tgname) END FROM pg_trigger g JOIN relation r ON r.oid = g.tgrelid \
     WHERE NOT g.tgisinternal AND ";

const RULES: &str = "SELECT 'rule', w.oid, w.xmin, r.nspname, r.relname, w.rulename, '', rtrim(pg_get_ruledef(w.oid), ';') \
     || CASE w.ev_enabled WHEN 'O' THEN '' ELSE '; ALTER TABLE ' || r.quoted || CASE w.ev_enabled WHEN 'D' THEN ' DISABLE' \
     WHEN 'R' THEN ' ENABLE REPLICA' ELSE ' ENABLE ALWAYS' END || ' RULE ' || quote_ident(w.rulename) END \
     FROM pg_rewrite w JOIN relation r ON r.oid = w.ev_class WHERE w.rulename <> '_RETURN'";

/// Who has it is not said: it may be made before the column.
const SEQUENCES: &str = "SELECT 'sequence', c.oid, q.xmin, n.nspname, coalesce((SELECT o.relname FROM pg_depend d \
     JOIN pg_class o ON o.oid = d.refobjid WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
     AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a' AND d.refobjsubid > 0 LIMIT 1), ''), c.relname, '', \
     'CREATE SEQUENCE ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname) || ' AS ' || format_type(q.seqtypid, NULL) \
     || ' INCREMENT BY ' || q.seqincrement || ' MINVALUE ' || q.seqmin || ' MAXVALUE ' || q.seqmax || ' START WITH ' \
     || q.seqstart || ' CACHE ' || q.seqcache || CASE WHEN q.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END \
     FROM pg_sequence q JOIN pg_class c ON c.oid = q.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relpersistence <> 't' \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
     AND d.deptype IN ('e', 'i'))";

/// The functions of an aggregate go by their names, which have their schemas outside `pg_catalog`; what is as it is without
/// being said is left out.
const AGGREGATES: &str = "SELECT 'function', p.oid, p.xmin, n.nspname, '', \
     quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')', \
     concat('a ', g.arguments, ' ', coalesce(pg_get_function_result(p.oid), ''), E'\\n'), \
     format('CREATE OR REPLACE AGGREGATE %I.%I(%s) (', n.nspname, p.proname, g.arguments) || concat_ws(', ', \
     'SFUNC = ' || a.aggtransfn::regproc, 'STYPE = ' || format_type(a.aggtranstype, NULL), \
     'SSPACE = ' || nullif(a.aggtransspace, 0), 'FINALFUNC = ' || nullif(a.aggfinalfn::oid, 0)::regproc, \
     CASE WHEN a.aggfinalextra THEN 'FINALFUNC_EXTRA' END, \
     'FINALFUNC_MODIFY = ' || CASE WHEN a.aggfinalfn::oid <> 0 THEN m.modify END, \
     'COMBINEFUNC = ' || nullif(a.aggcombinefn::oid, 0)::regproc, 'SERIALFUNC = ' || nullif(a.aggserialfn::oid, 0)::regproc, \
     'DESERIALFUNC = ' || nullif(a.aggdeserialfn::oid, 0)::regproc, 'INITCOND = ' || quote_literal(a.agginitval), \
     'MSFUNC = ' || nullif(a.aggmtransfn::oid, 0)::regproc, 'MINVFUNC = ' || nullif(a.aggminvtransfn::oid, 0)::regproc, \
     'MSTYPE = ' || format_type(nullif(a.aggmtranstype, 0), NULL), 'MSSPACE = ' || nullif(a.aggmtransspace, 0), \
     'MFINALFUNC = ' || nullif(a.aggmfinalfn::oid, 0)::regproc, CASE WHEN a.aggmfinalextra THEN 'MFINALFUNC_EXTRA' END, \
     'MFINALFUNC_MODIFY = ' || CASE WHEN a.aggmfinalfn::oid <> 0 THEN m.moving_modify END, \
     'MINITCOND = ' || quote_literal(a.aggminitval), \
     (SELECT format('SORTOP = OPERATOR(%I.%s)', s.nspname, o.oprname) FROM pg_operator o \
     JOIN pg_namespace s ON s.oid = o.oprnamespace WHERE o.oid = a.aggsortop), \
     'PARALLEL = ' || CASE p.proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' END, \
     CASE a.aggkind WHEN 'h' THEN 'HYPOTHETICAL' END) || ')' \
     FROM pg_aggregate a JOIN pg_proc p ON p.oid = a.aggfnoid JOIN pg_namespace n ON n.oid = p.pronamespace, \
     LATERAL (SELECT coalesce(nullif(pg_get_function_identity_arguments(p.oid), ''), '*') AS arguments OFFSET 0) g, \
     LATERAL (SELECT CASE to_jsonb(a) ->> 'aggfinalmodify' WHEN 's' THEN 'SHAREABLE' WHEN 'w' THEN 'READ_WRITE' \
     WHEN 'r' THEN CASE WHEN a.aggkind <> 'n' THEN 'READ_ONLY' END END AS modify, \
     CASE to_jsonb(a) ->> 'aggmfinalmodify' WHEN 's' THEN 'SHAREABLE' WHEN 'w' THEN 'READ_WRITE' \
     WHEN 'r' THEN CASE WHEN a.aggkind <> 'n' THEN 'READ_ONLY' END END AS moving_modify OFFSET 0) m \
     WHERE n.nspname NOT LIKE 'pg\\_temp\\_%' \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid \
     AND d.deptype IN ('e', 'i'))";

/// Of users.
const DOMAINS_AND_ENUMS: &str = "SELECT t.oid, t.xmin AS version, n.nspname, t.typname, t.typtype, t.typbasetype, \
     t.typtypmod, t.typcollation, quote_ident(n.nspname) || '.' || quote_ident(t.typname) AS quoted \
     FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace \
     WHERE t.typtype IN ('d', 'e') AND n.nspname NOT LIKE 'pg\\_temp\\_%' \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walferry', 'aiven_extras') \
     AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid \
     AND d.deptype IN ('e', 'i'))";

/// Each label comes after the nearest one that was there when it was added, so that later ones leave its text as it is.
const TYPES: &str = "SELECT CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'enum' END, t.oid, t.version, t.nspname, '', t.typname, '', \
     CASE t.typtype WHEN 'd' THEN 'CREATE DOMAIN ' || t.quoted || ' AS ' || format_type(t.typbasetype, t.typtypmod) \
     || coalesce((SELECT format(' COLLATE %I.%I', s.nspname, l.collname) FROM pg_collation l \
     JOIN pg_namespace s ON s.oid = l.collnamespace JOIN pg_type b ON b.oid = t.typbasetype \
     WHERE l.oid = t.typcollation AND b.typcollation <> l.oid), '') ELSE 'CREATE TYPE ' || t.quoted || ' AS ENUM ()' END \
     FROM type t UNION ALL SELECT 'domain constraint', k.oid, k.xmin, t.nspname, t.typname, k.conname, '', \
     'ALTER DOMAIN ' || t.quoted || ' ADD CONSTRAINT ' || quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid) \
     FROM pg_constraint k JOIN type t ON t.oid = k.contypid WHERE k.contype = 'c' \
     UNION ALL SELECT 'enum label', e.oid, e.xmin, t.nspname, t.typname, e.enumlabel, '', \
     'ALTER TYPE ' || t.quoted || ' ADD VALUE ' || quote_literal(e.enumlabel) || coalesce( \
     (SELECT ' AFTER ' || quote_literal(o.enumlabel) FROM pg_enum o WHERE o.enumtypid = e.enumtypid AND o.oid < e.oid \
     AND o.enumsortorder < e.enumsortorder ORDER BY o.enumsortorder DESC LIMIT 1), \
     (SELECT ' BEFORE ' || quote_literal(o.enumlabel) FROM pg_enum o WHERE o.enumtypid = e.enumtypid AND o.oid < e.oid \
     AND o.enumsortorder > e.enumsortorder ORDER BY o.enumsortorder LIMIT 1), '') \
     FROM pg_enum e JOIN type t ON t.oid = e.enumtypid";

//! Who owns what in the current database, and who may do what with it.
//!
//! Objects go by kind and identity, the server's own spelling of which is the same on both sides and fit for a
//! statement. Left out: what belongs to an extension, the catalogs' own schemas, and what follows another object (the
//! sequence of a column, the array type and the row type).

use std::fmt;
use std::str::FromStr;

use super::{Error, SideClient, ask};
use crate::pg::Sql;

/// A kind of object, as ALTER has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// Not of the queries below: the database itself.
    Database,
    /// The first of all, since its owner may create in it.
    Schema,
    /// Partitioned ones too.
    Table,
    /// A view.
    View,
    /// A materialised view.
    MaterializedView,
    /// A foreign table.
    ForeignTable,
    /// A sequence; that of a column has no owner of its own.
    Sequence,
    /// A base, enum, range or composite type.
    Type,
    /// A domain.
    Domain,
    /// A function, procedure or aggregate.
    Routine,
    /// Has no owner but a superuser.
    ForeignDataWrapper,
    /// A foreign server.
    Server,
    /// A collation.
    Collation,
    /// A conversion.
    Conversion,
    /// An operator.
    Operator,
    /// An operator class.
    OperatorClass,
    /// An operator family.
    OperatorFamily,
    /// A text search dictionary.
    Dictionary,
    /// A text search configuration.
    Configuration,
    /// Extended statistics.
    Statistics,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name, with schema and argument types, quoted.
    pub identity: String,
}

/// An object and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The object.
    pub object: Object,
    /// The schema that it is in, if it is in one.
    pub schema: Option<String>,
    /// Its owner.
    pub owner: String,
    /// Its owner can be another one.
    pub alterable: bool,
}

/// Something that somebody may do with an object. What nobody has said otherwise is spelt out too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Privilege {
    /// The object.
    pub object: Object,
    /// One column of it.
    pub column: Option<String>,
    /// Who may; none: PUBLIC.
    pub grantee: Option<String>,
    /// `SELECT`, `USAGE`, ….
    pub privilege: String,
    /// WITH GRANT OPTION.
    pub grantable: bool,
}

/// What is different from the server's defaults for objects that a role will make.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DefaultPrivilege {
    /// The role that makes them.
    pub role: String,
    /// In this schema; none: in whatever schema.
    pub schema: Option<String>,
    /// `r` tables, `S` sequences, `f` routines, `T` types, `n` schemas, `L` large objects.
    pub kind: String,
    /// Who may; none: PUBLIC.
    pub grantee: Option<String>,
    /// `SELECT`, `USAGE`, ….
    pub privilege: String,
    /// WITH GRANT OPTION.
    pub grantable: bool,
    /// Granted; else revoked.
    pub granted: bool,
}

impl ObjectKind {
    const ALL: [Self; 20] = [
        Self::Database,
        Self::Schema,
        Self::Table,
        Self::View,
        Self::MaterializedView,
        Self::ForeignTable,
        Self::Sequence,
        Self::Type,
        Self::Domain,
        Self::Routine,
        Self::ForeignDataWrapper,
        Self::Server,
        Self::Collation,
        Self::Conversion,
        Self::Operator,
        Self::OperatorClass,
        Self::OperatorFamily,
        Self::Dictionary,
        Self::Configuration,
        Self::Statistics,
    ];

    /// As ALTER has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "DATABASE",
            Self::Schema => "SCHEMA",
            Self::Table => "TABLE",
            Self::View => "VIEW",
            Self::MaterializedView => "MATERIALIZED VIEW",
            Self::ForeignTable => "FOREIGN TABLE",
            Self::Sequence => "SEQUENCE",
            Self::Type => "TYPE",
            Self::Domain => "DOMAIN",
            Self::Routine => "ROUTINE",
            Self::ForeignDataWrapper => "FOREIGN DATA WRAPPER",
            Self::Server => "SERVER",
            Self::Collation => "COLLATION",
            Self::Conversion => "CONVERSION",
            Self::Operator => "OPERATOR",
            Self::OperatorClass => "OPERATOR CLASS",
            Self::OperatorFamily => "OPERATOR FAMILY",
            Self::Dictionary => "TEXT SEARCH DICTIONARY",
            Self::Configuration => "TEXT SEARCH CONFIGURATION",
            Self::Statistics => "STATISTICS",
        }
    }

    /// As GRANT has it.
    pub const fn granted_on(self) -> &'static str {
        match self {
            Self::View | Self::MaterializedView | Self::ForeignTable => "TABLE",
            Self::Server => "FOREIGN SERVER",
            other => other.as_str(),
        }
    }
}

impl FromStr for ObjectKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.identity)
    }
}

/// The objects of the current database and their owners, schemas first.
///
/// # Errors
/// When the server does not answer.
pub async fn owners(client: &SideClient) -> Result<Vec<Owned>, Error> {
    let sql = Sql::new(OBJECTS).text(
        "SELECT kind, (pg_identify_object(classid, oid, 0)).identity AS identity, schema, \
         pg_get_userbyid(owner)::text AS owner, alterable FROM object ORDER BY kind <> 'SCHEMA', kind, oid",
    );
    let rows = ask::rows(client, "the owners of objects", &sql, &[]).await?;
    let mut owners = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(object) = object(row)? else { continue };
        owners.push(Owned {
            object,
            schema: row.get("schema")?,
            owner: row.get("owner")?,
            alterable: row.get("alterable")?,
        });
    }
    Ok(owners)
}

/// Who may do what with the objects of the current database.
///
/// # Errors
/// When the server does not answer.
pub async fn privileges(client: &SideClient) -> Result<Vec<Privilege>, Error> {
    let sql = Sql::new(OBJECTS).text(
        ", acl AS (SELECT kind, classid, oid, NULL::text AS column, coalesce(acl, acldefault(letter, owner)) AS acl \
         FROM object WHERE letter IS NOT NULL UNION ALL \
         SELECT o.kind, o.classid, o.oid, a.attname::text, a.attacl FROM object o JOIN pg_attribute a \
         ON o.classid = 'pg_class'::regclass AND a.attrelid = o.oid AND NOT a.attisdropped AND a.attacl IS NOT NULL) \
         SELECT a.kind, (pg_identify_object(a.classid, a.oid, 0)).identity AS identity, a.column, \
         CASE WHEN x.grantee <> 0 THEN pg_get_userbyid(x.grantee)::text END AS grantee, \
         x.privilege_type AS privilege, bool_or(x.is_grantable) AS grantable \
         FROM acl a CROSS JOIN LATERAL aclexplode(a.acl) x GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5",
    );
    let rows = ask::rows(client, "the privileges on objects", &sql, &[]).await?;
    let mut privileges = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(object) = object(row)? else { continue };
        privileges.push(privilege(row, object, row.get("column")?)?);
    }
    Ok(privileges)
}

/// The current database's owner, and who may do what with it. It goes by its quoted name.
///
/// # Errors
/// When the server does not answer.
pub async fn database_privileges(client: &SideClient) -> Result<(Owned, Vec<Privilege>), Error> {
    let question = "the privileges on the database";
    let sql = Sql::new(
        "SELECT quote_ident(datname) AS identity, pg_get_userbyid(datdba)::text AS owner FROM pg_database \
         WHERE datname = current_database()",
    );
    let row = ask::row(client, question, &sql, &[]).await?;
    let object = Object { kind: ObjectKind::Database, identity: row.get("identity")? };
    let owned = Owned { object: object.clone(), schema: None, owner: row.get("owner")?, alterable: true };
    let sql = Sql::new(
        "SELECT CASE WHEN x.grantee <> 0 THEN pg_get_userbyid(x.grantee)::text END AS grantee, \
         x.privilege_type AS privilege, bool_or(x.is_grantable) AS grantable FROM pg_database d \
         CROSS JOIN LATERAL aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x \
         WHERE d.datname = current_database() GROUP BY 1, 2 ORDER BY 1, 2",
    );
    let rows = ask::rows(client, question, &sql, &[]).await?;
    let privileges = rows.iter().map(|row| privilege(row, object.clone(), None));
    Ok((owned, privileges.collect::<Result<_, _>>()?))
}

/// What the current database has that is neither an object's nor a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseProperties {
    /// CONNECTION LIMIT; -1 for none.
    pub connection_limit: i32,
    /// COMMENT ON DATABASE.
    pub comment: Option<String>,
}

/// The current database's own properties.
///
/// # Errors
/// When the server does not answer.
pub async fn database_properties(client: &SideClient) -> Result<DatabaseProperties, Error> {
    let sql = Sql::new(
        "SELECT datconnlimit, shobj_description(oid, 'pg_database') AS comment FROM pg_database \
         WHERE datname = current_database()",
    );
    let row = ask::row(client, "the database's properties", &sql, &[]).await?;
    Ok(DatabaseProperties { connection_limit: row.get("datconnlimit")?, comment: row.get("comment")? })
}

/// What is different from the server's defaults for objects to come.
///
/// # Errors
/// When the server does not answer.
pub async fn default_privileges(client: &SideClient) -> Result<Vec<DefaultPrivilege>, Error> {
    // An entry for whatever schema stands in place of the server's defaults, one for a schema comes on top of them.
    let sql = Sql::new(
        "WITH entry AS (SELECT pg_get_userbyid(d.defaclrole)::text AS role, n.nspname::text AS schema, \
         d.defaclobjtype::text AS kind, d.defaclacl AS acl, CASE WHEN d.defaclnamespace = 0 \
         THEN acldefault(CASE d.defaclobjtype WHEN 'S' THEN 's'::\"char\" ELSE d.defaclobjtype END, d.defaclrole) \
         END AS base FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace), \
         now AS (SELECT e.role, e.schema, e.kind, x.* FROM entry e CROSS JOIN LATERAL aclexplode(e.acl) x), \
         base AS (SELECT e.role, e.schema, e.kind, x.* FROM entry e CROSS JOIN LATERAL aclexplode(e.base) x), \
         different AS (SELECT n.*, true AS granted FROM now n WHERE NOT EXISTS (SELECT FROM base b \
         WHERE (b.role, b.kind, b.grantee, b.privilege_type) = (n.role, n.kind, n.grantee, n.privilege_type) \
         AND b.schema IS NOT DISTINCT FROM n.schema AND b.is_grantable >= n.is_grantable) \
         UNION ALL SELECT b.*, false FROM base b WHERE NOT EXISTS (SELECT FROM now n \
         WHERE (b.role, b.kind, b.grantee, b.privilege_type) = (n.role, n.kind, n.grantee, n.privilege_type) \
         AND b.schema IS NOT DISTINCT FROM n.schema)) \
         SELECT role, schema, kind, CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee)::text END AS grantee, \
         privilege_type AS privilege, bool_or(is_grantable) AS grantable, granted FROM different \
         GROUP BY 1, 2, 3, 4, 5, 7 ORDER BY 1, 2, 3, 4, 5",
    );
    let rows = ask::rows(client, "the default privileges", &sql, &[]).await?;
    let found = |row: &ask::Answer| {
        Ok(DefaultPrivilege {
            role: row.get("role")?,
            schema: row.get("schema")?,
            kind: row.get("kind")?,
            grantee: row.get("grantee")?,
            privilege: row.get("privilege")?,
            grantable: row.get("grantable")?,
            granted: row.get("granted")?,
        })
    };
    rows.iter().map(found).collect()
}

/// None for an object that went away in between.
fn object(row: &ask::Answer) -> Result<Option<Object>, Error> {
    let identity: Option<String> = row.get("identity")?;
    let kind = row.parse("kind")?;
    Ok(identity.map(|identity| Object { kind, identity }))
}

fn privilege(row: &ask::Answer, object: Object, column: Option<String>) -> Result<Privilege, Error> {
    Ok(Privilege {
        object,
        column,
        grantee: row.get("grantee")?,
        privilege: row.get("privilege")?,
        grantable: row.get("grantable")?,
    })
}

/// Every object with its owner; `letter`: that of `acldefault`, none where there are no privileges.
const OBJECTS: &str = "
WITH namespace AS (
    SELECT oid, nspname FROM pg_namespace
    WHERE nspname NOT IN ('information_schema', 'walferry', 'aiven_extras') AND nspname !~ '^pg_'
), every AS (
    SELECT 'SCHEMA' AS kind, 'pg_namespace'::regclass AS classid, n.oid, n.nspowner AS owner, n.nspacl AS acl,
           'n'::\"char\" AS letter, NULL::text AS schema, true AS alterable
    FROM pg_namespace n JOIN namespace s ON s.oid = n.oid
    UNION ALL SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
               WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, 'pg_class'::regclass, c.oid, c.relowner, c.relacl,
           (CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END)::\"char\", n.nspname::text,
           NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
               AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))
    FROM pg_class c JOIN namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL SELECT CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, 'pg_type'::regclass, t.oid, t.typowner,
           t.typacl, 'T', n.nspname::text, true
    FROM pg_type t JOIN namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
    WHERE t.typtype IN ('b', 'c', 'd', 'e', 'r') AND (t.typrelid = 0 OR c.relkind = 'c')
        AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
    UNION ALL SELECT 'ROUTINE', 'pg_proc'::regclass, p.oid, p.proowner, p.proacl, 'f', n.nspname::text, true
    FROM pg_proc p JOIN namespace n ON n.oid = p.pronamespace
    WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        AND d.deptype = 'i')
    UNION ALL SELECT 'FOREIGN DATA WRAPPER', 'pg_foreign_data_wrapper'::regclass, oid, fdwowner, fdwacl, 'F', NULL, false
    FROM pg_foreign_data_wrapper
    UNION ALL SELECT 'SERVER', 'pg_foreign_server'::regclass, oid, srvowner, srvacl, 'S', NULL, true
    FROM pg_foreign_server
    UNION ALL SELECT 'COLLATION', 'pg_collation'::regclass, o.oid, o.collowner, NULL, NULL, n.nspname::text, true
    FROM pg_collation o JOIN namespace n ON n.oid = o.collnamespace
    UNION ALL SELECT 'CONVERSION', 'pg_conversion'::regclass, o.oid, o.conowner, NULL, NULL, n.nspname::text, true
    FROM pg_conversion o JOIN namespace n ON n.oid = o.connamespace
    UNION ALL SELECT 'OPERATOR', 'pg_operator'::regclass, o.oid, o.oprowner, NULL, NULL, n.nspname::text, true
    FROM pg_operator o JOIN namespace n ON n.oid = o.oprnamespace
    UNION ALL SELECT 'OPERATOR CLASS', 'pg_opclass'::regclass, o.oid, o.opcowner, NULL, NULL, n.nspname::text, true
    FROM pg_opclass o JOIN namespace n ON n.oid = o.opcnamespace
    UNION ALL SELECT 'OPERATOR FAMILY', 'pg_opfamily'::regclass, o.oid, o.opfowner, NULL, NULL, n.nspname::text, true
    FROM pg_opfamily o JOIN namespace n ON n.oid = o.opfnamespace
    UNION ALL SELECT 'TEXT SEARCH DICTIONARY', 'pg_ts_dict'::regclass, o.oid, o.dictowner, NULL, NULL,
           n.nspname::text, true
    FROM pg_ts_dict o JOIN namespace n ON n.oid = o.dictnamespace
    UNION ALL SELECT 'TEXT SEARCH CONFIGURATION', 'pg_ts_config'::regclass, o.oid, o.cfgowner, NULL, NULL,
           n.nspname::text, true
    FROM pg_ts_config o JOIN namespace n ON n.oid = o.cfgnamespace
    UNION ALL SELECT 'STATISTICS', 'pg_statistic_ext'::regclass, o.oid, o.stxowner, NULL, NULL, n.nspname::text, true
    FROM pg_statistic_ext o JOIN namespace n ON n.oid = o.stxnamespace
), object AS (
    SELECT e.* FROM every e WHERE NOT EXISTS (SELECT FROM pg_depend d
        WHERE d.classid = e.classid AND d.objid = e.oid AND d.deptype = 'e')
)";

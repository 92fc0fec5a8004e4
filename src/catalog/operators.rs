//! Which operator compares values of a type for equality.
//!
//! With `search_path = pg_catalog`, a plain `=` between two citext values silently becomes text's: another answer,
//! and no use of the index. So statements name the operator, schema and all, and this finds it: by the index's
//! operator class, or by the type as `GetDefaultOpClass` in the server does.

use std::collections::HashMap;

use super::{Error, SideClient, ask};
use crate::pg::{QualifiedName, Sql};

/// Equality operators of btree operator classes, and how types lead to them.
#[derive(Debug)]
pub(super) struct Operators {
    by_class: HashMap<u32, QualifiedName>,
    by_type: HashMap<u32, QualifiedName>,
    /// What a type can be taken for without conversion; preferred types first.
    coercions: HashMap<u32, Vec<u32>>,
    types: HashMap<u32, (Type, QualifiedName)>,
}

#[derive(Debug, Clone, Copy)]
enum Type {
    Domain { base: u32 },
    Array { element: u32 },
    Enum,
    Range,
    Multirange,
    Composite,
    Other,
}

impl Operators {
    /// Reads the operators, and what there is to know of `type_oids`.
    pub(super) async fn read(client: &SideClient, type_oids: Vec<u32>) -> Result<Self, Error> {
        let sql = Sql::new(
            "SELECT k.oid, k.opcdefault, k.opcintype, n.nspname::text AS schema, o.oprname::text AS name \
             FROM pg_opclass k JOIN pg_am m ON m.oid = k.opcmethod AND m.amname = 'btree' \
             JOIN pg_amop p ON p.amopfamily = k.opcfamily AND p.amoplefttype = k.opcintype \
             AND p.amoprighttype = k.opcintype AND p.amopstrategy = 3 AND p.amoppurpose = 's' \
             JOIN pg_operator o ON o.oid = p.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace",
        );
        let (rows, coercions, types) = tokio::try_join!(
            ask::rows(client, "the equality operators", &sql, &[]),
            coercions(client),
            types(client, type_oids),
        )?;
        let (mut by_class, mut by_type) = (HashMap::new(), HashMap::new());
        for row in rows {
            let operator = row.name()?;
            if row.get("opcdefault")? {
                by_type.insert(row.get("opcintype")?, operator.clone());
            }
            by_class.insert(row.get("oid")?, operator);
        }
        Ok(Self { by_class, by_type, coercions, types })
    }

    /// Equality as an index with this operator class has it.
    pub(super) fn of_class(&self, class: u32) -> Option<&QualifiedName> {
        self.by_class.get(&class)
    }

    /// Equality as the type's default btree operator class has it. A composite type's is given even where one of its
    /// own columns has none.
    pub(super) fn of_type(&self, oid: u32) -> Option<&QualifiedName> {
        let kind = self.kind(oid);
        if let Type::Domain { base } = kind {
            return self.of_type(base);
        }
        if let Some(operator) = self.by_type.get(&oid) {
            return Some(operator);
        }
        let coerced = || self.coercions.get(&oid)?.iter().find_map(|to| self.by_type.get(to));
        match kind {
            Type::Array { element } => self.of_type(element).and_then(|_| self.by_type.get(&ANYARRAY)),
            Type::Enum => self.by_type.get(&ANYENUM),
            Type::Range => self.by_type.get(&ANYRANGE),
            Type::Multirange => self.by_type.get(&ANYMULTIRANGE),
            Type::Composite => self.by_type.get(&RECORD),
            Type::Domain { .. } | Type::Other => coerced(),
        }
    }

    /// What both sides are to be cast to before values of this type are compared. Without a cast the server takes a
    /// text for what the operator compares: for oid where that is a regclass, for record where it is a composite
    /// type; and finds no operator at all for a domain over an enum. Never a domain: a key that is looked for need
    /// not meet its constraints.
    pub(super) fn cast(&self, oid: u32) -> Option<&QualifiedName> {
        let name = |oid| self.types.get(&oid).map(|(_, name)| name);
        match self.kind(oid) {
            Type::Domain { base } => self.cast(base).or_else(|| name(base)),
            Type::Composite => name(oid),
            Type::Other if !self.by_type.contains_key(&oid) => name(oid),
            Type::Other | Type::Array { .. } | Type::Enum | Type::Range | Type::Multirange => None,
        }
    }

    fn kind(&self, oid: u32) -> Type {
        self.types.get(&oid).map_or(Type::Other, |(kind, _)| *kind)
    }
}

async fn coercions(client: &SideClient) -> Result<HashMap<u32, Vec<u32>>, Error> {
    let sql = Sql::new(
        "SELECT c.castsource, c.casttarget FROM pg_cast c JOIN pg_type t ON t.oid = c.casttarget \
         WHERE c.castmethod = 'b' AND c.castcontext = 'i' ORDER BY t.typispreferred DESC, c.casttarget",
    );
    let mut coercions: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in ask::rows(client, "the binary coercions", &sql, &[]).await? {
        coercions.entry(row.get("castsource")?).or_default().push(row.get("casttarget")?);
    }
    Ok(coercions)
}

async fn types(client: &SideClient, oids: Vec<u32>) -> Result<HashMap<u32, (Type, QualifiedName)>, Error> {
    let sql = Sql::new(
        "WITH RECURSIVE used AS (SELECT unnest($1::oid[]) AS oid UNION SELECT coalesce(e.oid, t.typbasetype) \
         FROM used u JOIN pg_type t ON t.oid = u.oid LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid \
         WHERE t.typtype = 'd' OR e.oid IS NOT NULL) \
         SELECT t.oid, n.nspname::text AS schema, t.typname::text AS name, t.typtype::text AS kind, t.typbasetype, \
         e.oid AS element FROM used u JOIN pg_type t ON t.oid = u.oid \
         JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid",
    );
    let mut types = HashMap::new();
    for row in ask::rows(client, "the columns' types", &sql, &[&oids]).await? {
        let element: Option<u32> = row.get("element")?;
        let kind = match (row.byte("kind")?, element) {
            (b'd', _) => Type::Domain { base: row.get("typbasetype")? },
            (_, Some(element)) => Type::Array { element },
            (b'e', None) => Type::Enum,
            (b'r', None) => Type::Range,
            (b'm', None) => Type::Multirange,
            (b'c', None) => Type::Composite,
            _ => Type::Other,
        };
        types.insert(row.get("oid")?, (kind, row.name()?));
    }
    Ok(types)
}

/// `pg_type.oid` of the pseudo-types that whole families of types are compared as.
const RECORD: u32 = 2249;
const ANYARRAY: u32 = 2277;
const ANYENUM: u32 = 3500;
const ANYRANGE: u32 = 3831;
const ANYMULTIRANGE: u32 = 4537;

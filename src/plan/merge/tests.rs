use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::pg::{Column, CommitLsn, Oid, QualifiedName, Relation, ReplicaIdentity, Sql};

/// What a target would hold: by table and key, the value.
type Tables = BTreeMap<(u32, u8), u8>;

/// One table's relation and statements.
struct Table {
    relation: Arc<Relation>,
    insert: Arc<Statement>,
    updates: [Arc<Statement>; 2],
    rekey: Arc<Statement>,
    delete: Arc<Statement>,
}

#[derive(Debug, Clone)]
enum Wish {
    Put(u8, u8),
    Change(u8, u8, usize),
    Rekey(u8, u8),
    Remove(u8),
    Truncate,
}

impl Table {
    fn new(id: u32) -> Self {
        let columns = ["id", "value"].map(|name| Column {
            name: name.to_owned(),
            type_oid: Oid::new(23),
            type_modifier: -1,
            type_name: None,
            key: name == "id",
        });
        let relation = Relation {
            id: RelationId::new(id),
            name: QualifiedName::new("public", format!("t{id}")),
            identity: ReplicaIdentity::Default,
            columns: columns.into(),
        };
        let statement = || Statement::new(Sql::new("one"));
        Self {
            relation: Arc::new(relation),
            insert: Statement::with_many(Sql::new("one"), Some(Sql::new("many"))),
            updates: [statement(), statement()],
            rekey: statement(),
            delete: statement(),
        }
    }

    fn step(&self, kind: Kind, statement: &Arc<Statement>, params: &[u8], key: Option<usize>) -> Step {
        Step {
            statement: Arc::clone(statement),
            params: params.iter().map(|value| Some(Bytes::copy_from_slice(&[*value]))).collect(),
            kind,
            relation: Arc::clone(&self.relation),
            commit_lsn: CommitLsn::new(1),
            rows: (kind != Kind::Truncate).then_some(1),
            key,
        }
    }

    /// The step of a wish that is legal now; the model follows.
    fn wish(&self, wish: &Wish, model: &mut Tables) -> Option<Step> {
        let id = self.relation.id.get();
        match *wish {
            Wish::Put(key, value) => {
                if model.contains_key(&(id, key)) {
                    return None;
                }
                model.insert((id, key), value);
                Some(self.step(Kind::Insert, &self.insert, &[key, value], None))
            }
            Wish::Change(key, value, form) => {
                *model.get_mut(&(id, key))? = value;
                Some(self.step(Kind::Update, &self.updates[form], &[value, key], Some(1)))
            }
            Wish::Rekey(from, to) => {
                if model.contains_key(&(id, to)) {
                    return None;
                }
                let value = model.remove(&(id, from))?;
                model.insert((id, to), value);
                Some(self.step(Kind::Update, &self.rekey, &[to, from], None))
            }
            Wish::Remove(key) => {
                model.remove(&(id, key))?;
                Some(self.step(Kind::Delete, &self.delete, &[key], Some(1)))
            }
            Wish::Truncate => {
                model.retain(|(table, _), _| *table != id);
                Some(self.step(Kind::Truncate, &Statement::new(Sql::new("truncate")), &[], None))
            }
        }
    }
}

/// Executes a step as a target would; every one must touch the rows that it names.
fn execute(step: &Step, tables: &[Table], target: &mut Tables) {
    let id = step.relation.id.get();
    let table = tables.iter().find(|table| table.relation.id.get() == id).expect("a table");
    let values: Vec<u8> = step.params.iter().map(|value| value.as_ref().expect("no NULL")[0]).collect();
    match step.kind {
        Kind::Insert => {
            assert_eq!(step.rows, Some(values.len() as u64 / 2));
            for row in values.chunks(2) {
                assert_eq!(target.insert((id, row[0]), row[1]), None, "inserted twice");
            }
        }
        Kind::Update if Arc::ptr_eq(&step.statement, &table.rekey) => {
            let value = target.remove(&(id, values[1])).expect("the row is there");
            assert_eq!(target.insert((id, values[0]), value), None, "the key is taken");
        }
        Kind::Update => *target.get_mut(&(id, values[1])).expect("the row is there") = values[0],
        Kind::Delete => {
            target.remove(&(id, values[0])).expect("the row is there");
        }
        Kind::Truncate => target.retain(|(table, _), _| *table != id),
        Kind::Alter => unreachable!("the histories have none"),
    }
}

fn wishes() -> impl Strategy<Value = Vec<(usize, Wish)>> {
    let (key, value) = (0..12_u8, any::<u8>());
    let wish = prop_oneof![
        6 => (key.clone(), value).prop_map(|(key, value)| Wish::Put(key, value)),
        8 => (key.clone(), value, 0..2_usize).prop_map(|(key, value, form)| Wish::Change(key, value, form)),
        1 => (key.clone(), key.clone()).prop_map(|(from, to)| Wish::Rekey(from, to)),
        3 => key.prop_map(Wish::Remove),
        1 => Just(Wish::Truncate),
    ];
    prop::collection::vec((0..3_usize, wish), 0..200)
}

proptest! {
    #[test]
    fn the_end_is_the_same(wishes in wishes()) {
        let tables = [Table::new(1), Table::new(2), Table::new(3)];
        let mut model = Tables::new();
        let steps: Vec<Step> =
            wishes.iter().filter_map(|(table, wish)| tables[*table].wish(wish, &mut model)).collect();
        let before = steps.len();
        let merged = merge(steps);
        prop_assert!(merged.len() <= before);
        let mut target = Tables::new();
        for step in &merged {
            execute(step, &tables, &mut target);
        }
        prop_assert_eq!(target, model);
    }
}

#[test]
fn what_is_left_of_a_busy_table() {
    let (branches, history) = (Table::new(1), Table::new(2));
    let mut steps = Vec::new();
    for n in 0..100 {
        steps.push(branches.step(Kind::Update, &branches.updates[0], &[n, n % 10], Some(1)));
        steps.push(history.step(Kind::Insert, &history.insert, &[n, n], None));
    }
    let merged = merge(steps);
    let updates: Vec<&Step> = merged.iter().filter(|step| step.kind == Kind::Update).collect();
    assert_eq!(updates.len(), 10);
    assert!(updates.iter().all(|step| step.params[0].as_deref() >= Some(&[90])), "the last value stays");
    let inserts: Vec<u64> =
        merged.iter().filter(|step| step.kind == Kind::Insert).filter_map(|step| step.rows).collect();
    assert_eq!(inserts, [vec![8; 12], vec![1; 4]].concat());
}

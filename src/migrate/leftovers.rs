//! What a migration left on the source, found by its names alone: for when its target is dead, or knows nothing of it.
//!
//! A slot that nobody reads keeps WAL until the source's disk is full, so there has to be a way without the target. A
//! name proves less than the target's word: only what is called `walferry_NAME_xxxxxxxx` in this database counts; never
//! a slot that is in use, nor what goes with it; and nothing while any Walferry has a session in this database, since an
//! engine that copies has a slot that nobody reads yet.

use crate::catalog::{self, SourceClient};
use crate::error::{Definite, Result};
use crate::limits::{ENGINE_LOCK_POLL, SESSIONS_GONE_WAIT};
use crate::pg::{SlotName, Sql};

use super::{publications, snapshot};

/// Slots and publications of one migration's name in one database.
#[derive(Debug, Default)]
pub struct Leftovers {
    slots: Vec<SlotName>,
    publications: Vec<String>,
    /// Slots in use: they and what goes with them are a live engine's.
    in_use: Vec<String>,
}

impl Leftovers {
    /// What is there now.
    ///
    /// # Errors
    /// When the source does not answer.
    pub async fn find(client: &SourceClient, migration: &str) -> Result<Self> {
        // A migration's name holds nothing but a-z, 0-9 and _.
        let pattern = format!("^walferry_{migration}_[0-9a-f]{{8}}$");
        let mut found = Self::default();
        for (name, active) in catalog::slots_named(client, &pattern).await? {
            match (SlotName::new(&name), active) {
                (Ok(slot), false) => found.slots.push(slot),
                (Ok(_), true) => found.in_use.push(name),
                // The server has no such names.
                (Err(_), _) => {}
            }
        }
        let pattern = format!("^walferry_{migration}_[0-9a-f]{{8}}(_ins)?$");
        let names = catalog::publications(client, &[], &pattern).await?.into_iter();
        let in_use = |name: &String| {
            found
                .in_use
                .iter()
                .any(|slot| name.strip_prefix(slot).is_some_and(|end| ["", "_ins"].contains(&end)))
        };
        found.publications = names.filter(|name| !in_use(name)).collect();
        Ok(found)
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.publications.is_empty() && self.in_use.is_empty()
    }

    /// Whether all that there is belongs to a live engine.
    pub fn is_all_in_use(&self) -> bool {
        self.slots.is_empty() && self.publications.is_empty()
    }

    /// Each thing, for people.
    pub fn list(&self) -> String {
        let slots = self.slots.iter().map(|slot| format!("replication slot {slot}"));
        let publications = self.publications.iter().map(|name| format!("publication {name}"));
        let in_use = self.in_use.iter().map(|slot| format!("replication slot {slot} (in use)"));
        slots.chain(publications).chain(in_use).collect::<Vec<_>>().join(", ")
    }

    /// The statements that drop it, in this database of the source.
    pub fn by_hand(&self) -> String {
        if self.is_all_in_use() {
            return String::new();
        }
        let drop_slot = |slot: &str| Sql::new("SELECT pg_drop_replication_slot(").literal(slot).text(")");
        let drop_publication = |name: &String| Sql::new("DROP PUBLICATION ").ident(name);
        let slots = self.slots.iter().map(|slot| drop_slot(slot.as_str()));
        catalog::by_hand(slots.chain(self.publications.iter().map(drop_publication))).to_string()
    }

    /// Drops what nobody uses; says what.
    ///
    /// # Errors
    /// When a Walferry is at work in this database, or the source refuses.
    pub async fn drop_all(&self, client: &SourceClient) -> Result<Vec<String>> {
        refuse_at_work(client).await?;
        let mut dropped = Vec::new();
        for slot in &self.slots {
            if snapshot::drop_slot(client, slot).await? {
                dropped.push(format!("replication slot {slot} on the source"));
            }
        }
        for name in publications::drop_all(client, &self.publications).await? {
            dropped.push(format!("publication {name} on the source"));
        }
        if self.in_use.is_empty() {
            return Ok(dropped);
        }
        Err(Definite::new(format!(
            "replication slot {} is in use: a live engine reads it",
            self.in_use.join(", ")
        ))
        .detail(format!(
            "dropped before: {}",
            if dropped.is_empty() { "nothing".to_owned() } else { dropped.join(", ") }
        ))
        .hint("stop that engine first, then run `walferry remove --force` again")
        .into())
    }
}

/// The statements that find and drop it on a source that cannot be asked now.
pub fn unseen_by_hand(migration: &str) -> String {
    let pattern = format!("^walferry_{migration}_[0-9a-f]{{8}}");
    let slots =
        Sql::new("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ ")
            .literal(&pattern)
            .text(" AND database = current_database() AND NOT active;");
    let publications =
        Sql::new("SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication WHERE pubname ~ ")
            .literal(&pattern)
            .text(" \\gexec");
    // A fence may have made the session read only.
    format!("SET default_transaction_read_only = off; {slots} {publications}")
}

/// The session of an engine that was killed ends when the server notices, so this waits for it a little.
async fn refuse_at_work(client: &SourceClient) -> Result<()> {
    let began = tokio::time::Instant::now();
    loop {
        let Some(session) = catalog::walferry_at_work(client).await? else { return Ok(()) };
        if began.elapsed() >= SESSIONS_GONE_WAIT {
            return Err(Definite::new(
                "a Walferry is at work in this database of the source: nothing is dropped",
            )
            .detail(session)
            .hint("stop it first; what a live engine uses must stay")
            .into());
        }
        tokio::time::sleep(ENGINE_LOCK_POLL).await;
    }
}

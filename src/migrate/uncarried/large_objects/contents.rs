//! The bytes of large objects, in chunks.

use std::collections::HashMap;

use super::Job;
use crate::error::{Result, Side};
use crate::limits::{
    LARGE_OBJECT_CHUNK_BYTES, LARGE_OBJECT_CHUNKS_COMPARED, LARGE_OBJECT_FIRST_BYTES, LARGE_OBJECTS_AT_ONCE,
};
use crate::pg::Sql;
use crate::source::Dialect;

const CHUNK: i64 = LARGE_OBJECT_CHUNK_BYTES as i64;

/// `INV_READ` and `INV_WRITE`.
const READ: i32 = 0x40000;
const WRITE: i32 = 0x20000;

impl Job<'_> {
    /// Copies those that the target has not, and records that they are ours.
    pub(super) async fn create(&mut self, ids: &[u32]) -> Result<()> {
        let first = i32::try_from(LARGE_OBJECT_FIRST_BYTES).unwrap_or(i32::MAX);
        let read = Sql::new("SELECT t.id, lo_get(t.id, 0, $2) FROM unnest($1::oid[]) t(id)");
        let write =
            Sql::new("SELECT lo_from_bytea(t.id, t.data) FROM unnest($1::oid[], $2::bytea[]) t(id, data)");
        for some in ids.chunks(LARGE_OBJECTS_AT_ONCE) {
            let rows = self.ask(Side::Source, &read, &[&some, &first]).await?;
            let ids: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
            let data: Vec<&[u8]> = rows.iter().map(|row| row.get(1)).collect();
            self.ask(Side::Target, &write, &[&ids, &data]).await?;
            self.tally.bytes += data.iter().map(|data| data.len() as u64).sum::<u64>();
            let longer = ids.iter().zip(&data).filter(|(_, data)| data.len() == LARGE_OBJECT_FIRST_BYTES);
            let longer: Vec<u32> = longer.map(|(id, _)| *id).collect();
            for id in longer {
                let mut offset = i64::from(first);
                while self.move_chunk(id, offset).await? == LARGE_OBJECT_CHUNK_BYTES {
                    offset += CHUNK;
                }
            }
        }
        self.store().add_large_objects(ids).await
    }

    /// Those that are not the same on both sides, with the source's size.
    pub(super) async fn differing(&self, ids: &[u32]) -> Result<Vec<(u32, i64)>> {
        let mut differing = Vec::new();
        for some in ids.chunks(LARGE_OBJECTS_AT_ONCE) {
            let (here, there) =
                tokio::try_join!(self.digests(Side::Source, some), self.digests(Side::Target, some))?;
            let other = some.iter().filter(|&id| here.get(id) != there.get(id));
            differing.extend(other.filter_map(|id| Some((*id, here.get(id)?.0))));
        }
        Ok(differing)
    }

    /// Makes one that is on both sides the same, by moving the chunks that differ.
    pub(super) async fn change(&mut self, id: u32, size: i64) -> Result<()> {
        // It may have been longer. What is missing at its end is a chunk that differs.
        let cut = Sql::new("SELECT lo_truncate64(fd, least(lo_lseek64(fd, 0, 2), $2)), lo_close(fd) ")
            .text("FROM (SELECT lo_open($1, $3) AS fd OFFSET 0) opened");
        self.ask(Side::Target, &cut, &[&id, &size, &(READ | WRITE)]).await?;
        let last = (size - 1).max(0) / CHUNK;
        let mut from = 0;
        while from <= last {
            let to = (from + LARGE_OBJECT_CHUNKS_COMPARED - 1).min(last);
            let (here, there) = tokio::try_join!(
                self.chunk_digests(Side::Source, id, from, to),
                self.chunk_digests(Side::Target, id, from, to)
            )?;
            for (chunk, _) in (from..).zip(here.iter().zip(&there)).filter(|(_, (here, there))| here != there)
            {
                self.move_chunk(id, chunk * CHUNK).await?;
            }
            from = to + 1;
        }
        Ok(())
    }

    /// Moves a chunk, and gives its bytes.
    async fn move_chunk(&mut self, id: u32, offset: i64) -> Result<usize> {
        let length = i32::try_from(LARGE_OBJECT_CHUNK_BYTES).unwrap_or(i32::MAX);
        let read = Sql::new("SELECT lo_get($1, $2, $3)");
        let rows = self.ask(Side::Source, &read, &[&id, &offset, &length]).await?;
        let data: &[u8] = rows.first().map(|row| row.get(0)).unwrap_or_default();
        if !data.is_empty() {
            self.ask(Side::Target, &Sql::new("SELECT lo_put($1, $2, $3)"), &[&id, &offset, &data]).await?;
            self.tally.bytes += data.len() as u64;
        }
        Ok(data.len())
    }

    /// The size of each, and a hash of its chunks' hashes.
    async fn digests(&self, side: Side, ids: &[u32]) -> Result<HashMap<u32, (i64, String)>> {
        let digest = Dialect::new(self.all.version).digest();
        // A descriptor that is not closed lives as long as the transaction.
        let sql =
            Sql::new("WITH opened AS (SELECT t.id, lo_open(t.id, $2) AS fd FROM unnest($1::oid[]) t(id)), ")
                .text(
                    "sized AS (SELECT id, lo_lseek64(fd, 0, 2) AS size, lo_close(fd) AS closed FROM opened) ",
                )
                .text("SELECT s.id, s.size, (SELECT ")
                .text(digest)
                .text("(string_agg(")
                .text(digest)
                .text("(lo_get(s.id, k * $3::int8, $3::int8::int4)), '' ORDER BY k))::text ")
                .text("FROM generate_series(0, (s.size - 1) / $3::int8) k) FROM sized s");
        let rows = self.ask(side, &sql, &[&ids, &READ, &CHUNK]).await?;
        Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
    }

    /// The hashes of chunks, in their order.
    async fn chunk_digests(&self, side: Side, id: u32, from: i64, to: i64) -> Result<Vec<String>> {
        let sql = Sql::new("SELECT ")
            .text(Dialect::new(self.all.version).digest())
            .text("(lo_get($1, k * $2::int8, $2::int8::int4))::text ")
            .text("FROM generate_series($3::int8, $4::int8) k ORDER BY k");
        let rows = self.ask(side, &sql, &[&id, &CHUNK, &from, &to]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

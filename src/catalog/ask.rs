//! One question, its rows, and their columns by name: every error says what was asked.

use std::str::FromStr;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};

use super::{Error, SideClient};
use crate::error::Side;
use crate::pg::{QualifiedName, Sql};

/// A parameter of a question.
pub(crate) type Param<'a> = &'a (dyn ToSql + Sync);

/// One row of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    question: &'static str,
    side: Side,
    row: Row,
}

impl Answer {
    /// The column `name`.
    pub(crate) fn get<'a, T: FromSql<'a>>(&'a self, name: &str) -> Result<T, Error> {
        self.row.try_get(name).map_err(|cause| Error::new(self.side, self.question, cause))
    }

    /// The text column `name`, parsed.
    pub(crate) fn parse<T: FromStr>(&self, name: &str) -> Result<T, Error> {
        let text: &str = self.get(name)?;
        text.parse().map_err(|_| self.unexpected(name))
    }

    /// The text column `name`, parsed, or nothing where it is NULL.
    pub(crate) fn parse_opt<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let text: Option<&str> = self.get(name)?;
        text.map(|text| text.parse().map_err(|_| self.unexpected(name))).transpose()
    }

    /// The integer column `name` as an unsigned number.
    pub(crate) fn count(&self, name: &str) -> Result<u64, Error> {
        let value: i64 = self.get(name)?;
        u64::try_from(value).map_err(|_| self.unexpected(name))
    }

    /// The columns `schema` and `name`.
    pub(crate) fn name(&self) -> Result<QualifiedName, Error> {
        Ok(QualifiedName::new(self.get::<String>("schema")?, self.get::<String>("name")?))
    }

    /// The one byte of the text column `name`; a space where it is empty.
    pub(crate) fn byte(&self, name: &str) -> Result<u8, Error> {
        let text: &str = self.get(name)?;
        Ok(text.as_bytes().first().copied().unwrap_or(b' '))
    }

    /// An error that names a column whose value makes no sense.
    pub(crate) fn unexpected(&self, name: &str) -> Error {
        Error::unexpected(self.side, self.question, format!("{name} is not what it should be"))
    }
}

/// Asks, and gives all rows: without parameters in one round trip, else in two.
pub(crate) async fn rows(
    client: &SideClient,
    question: &'static str,
    sql: &Sql,
    params: &[Param<'_>],
) -> Result<Vec<Answer>, Error> {
    let rows = match params {
        [] => client.query_typed(sql.as_str(), &[]).await,
        params => client.query(sql.as_str(), params).await,
    };
    let rows = rows.map_err(client.failed(question))?;
    Ok(rows.into_iter().map(|row| Answer { question, side: client.side(), row }).collect())
}

/// Asks for exactly one row.
pub(crate) async fn row(
    client: &SideClient,
    question: &'static str,
    sql: &Sql,
    params: &[Param<'_>],
) -> Result<Answer, Error> {
    let row = match params {
        [] => client.query_typed_one(sql.as_str(), &[]).await,
        params => client.query_one(sql.as_str(), params).await,
    };
    let row = row.map_err(client.failed(question))?;
    Ok(Answer { question, side: client.side(), row })
}

//! Reads the body of one backend message. Every read names the message in its error.

use std::borrow::Cow;

/// A message that cannot be decoded: its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub &'static str);

/// What is left of a message's body.
pub(super) struct Body<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Body<'a> {
    pub(super) const fn new(body: &'a [u8], message: &'static str) -> Self {
        Self { rest: body, message }
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Malformed(self.message))?;
        self.rest = rest;
        Ok(*array)
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed(self.message))?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A zero-terminated string.
    pub(super) fn c_str(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or(Malformed(self.message))?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(text)
    }

    /// A zero-terminated string. Before authentication the server speaks its own encoding, so what is not UTF-8 is
    /// replaced rather than refused.
    pub(super) fn text(&mut self) -> Result<Cow<'a, str>, Malformed> {
        self.c_str().map(String::from_utf8_lossy)
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The body must be used up.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed(self.message)) }
    }
}

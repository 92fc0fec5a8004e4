//! SCRAM-SHA-256, the client's side. RFC 5802, RFC 7677; manual: "SASL Authentication".
//!
//! Our own, because postgres-protocol's refuses more than 100,000 iterations, and a server's `scram_iterations` may say
//! more. The iterations are computed in slices that let other tasks run, so that a connection's time-out still ends
//! the exchange.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt;
use ring::{digest, hmac};

use super::error::AuthenticationError;
use crate::limits;

type Result<T> = std::result::Result<T, AuthenticationError>;
type Key = [u8; 32];

/// How the exchange is tied to the TLS session.
pub(super) enum Binding {
    /// Not: there is no TLS, it is switched off, or the certificate has no hash (`n`).
    None,
    /// Not, and the server is told that we could have, so that nobody in between can hide its offer (`y`).
    NotOffered,
    /// By the hash of the server's certificate (`p`).
    ServerEndPoint(Vec<u8>),
}

/// Sent the first message, waiting for the server's.
pub(super) struct First {
    binding: Binding,
    nonce: String,
}

/// Sent the proof, waiting for the server's own.
pub(super) struct Final {
    server_signature: hmac::Tag,
}

impl First {
    pub(super) fn new(binding: Binding) -> Self {
        let mut nonce = [0; 18];
        rand::rng().fill(&mut nonce);
        Self { binding, nonce: STANDARD.encode(nonce) }
    }

    /// `client-first-message`. The user's name is empty: the server takes it from the startup message.
    pub(super) fn message(&self) -> String {
        format!("{}n=,r={}", self.binding.header(), self.nonce)
    }

    /// Answers `server-first-message` with `client-final-message`.
    pub(super) async fn answer(self, server_first: &[u8], password: &str) -> Result<(String, Final)> {
        let malformed = AuthenticationError::Scram("malformed first message from the server");
        let server_first = std::str::from_utf8(server_first).map_err(|_| malformed.clone())?;
        let mut parts = server_first.split(',');
        let mut part =
            |prefix| parts.next().and_then(|part: &str| part.strip_prefix(prefix)).ok_or(malformed.clone());
        let (nonce, salt, iterations) = (part("r=")?, part("s=")?, part("i=")?);
        let salt = STANDARD.decode(salt).map_err(|_| malformed.clone())?;
        let iterations = iterations.parse::<u32>().ok().filter(|&count| count > 0).ok_or(malformed)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(AuthenticationError::Scram("the server did not use our nonce"));
        }
        let password = stringprep::saslprep(password).unwrap_or(password.into());
        let salted_password = salt_password(password.as_bytes(), &salt, iterations).await;
        let bare = format!("c={},r={nonce}", STANDARD.encode(self.binding.input()));
        let transcript = format!("n=,r={},{server_first},{bare}", self.nonce);
        let client_key = sign(&salted_password, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let proof = sign(stored_key.as_ref(), transcript.as_bytes());
        let proof: Vec<u8> = proof.as_ref().iter().zip(client_key.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = sign(&salted_password, b"Server Key");
        let server_signature = sign(server_key.as_ref(), transcript.as_bytes());
        Ok((format!("{bare},p={}", STANDARD.encode(proof)), Final { server_signature }))
    }
}

impl Final {
    /// Checks `server-final-message`: only who knows the password's verifier can have made it.
    pub(super) fn check(self, server_final: &[u8]) -> Result<()> {
        let signature = server_final.strip_prefix(b"v=").and_then(|text| STANDARD.decode(text).ok());
        if signature.as_deref() == Some(self.server_signature.as_ref()) {
            Ok(())
        } else {
            Err(AuthenticationError::Scram("the server could not prove that it knows the password"))
        }
    }
}

impl Binding {
    const fn header(&self) -> &'static str {
        match self {
            Self::None => "n,,",
            Self::NotOffered => "y,,",
            Self::ServerEndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    fn input(&self) -> Vec<u8> {
        let hash: &[u8] = match self {
            Self::None | Self::NotOffered => &[],
            Self::ServerEndPoint(hash) => hash,
        };
        [self.header().as_bytes(), hash].concat()
    }
}

/// `Hi()`: PBKDF2 with one block of output.
async fn salt_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let key = hmac::Key::new(hmac::HMAC_SHA256, password);
    let mut last = hmac::sign(&key, &[salt, &1_u32.to_be_bytes()].concat());
    let mut sum = words(&last);
    for iteration in 1..iterations {
        if iteration % limits::SCRAM_ITERATIONS_SLICE == 0 {
            tokio::task::yield_now().await;
        }
        last = hmac::sign(&key, last.as_ref());
        let [a, b] = words(&last);
        sum = [sum[0] ^ a, sum[1] ^ b];
    }
    let mut salted = [0; 32];
    salted[..16].copy_from_slice(&sum[0].to_be_bytes());
    salted[16..].copy_from_slice(&sum[1].to_be_bytes());
    salted
}

/// The 32 bytes of HMAC-SHA-256 as two numbers.
fn words(tag: &hmac::Tag) -> [u128; 2] {
    let (halves, _) = tag.as_ref().as_chunks::<16>();
    [u128::from_be_bytes(halves[0]), u128::from_be_bytes(halves[1])]
}

fn sign(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example exchange of RFC 7677, section 3, but for the user's name, which PostgreSQL leaves empty: so only the
    /// parts that do not depend on it are compared.
    #[tokio::test]
    async fn the_rfcs_password_and_salt() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let salted = salt_password(b"pencil", &salt, 4096).await;
        let transcript = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
                          r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
                          c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = sign(sign(&salted, b"Server Key").as_ref(), transcript.as_bytes());
        assert_eq!(STANDARD.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    /// RFC 4231, test case 6: a key longer than a block.
    #[test]
    fn a_long_key_is_hashed() {
        let signature = sign(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(signature.as_ref()[..4], [0x60, 0xe4, 0x31, 0x59]);
    }

    #[tokio::test]
    async fn what_a_server_may_not_say() {
        async fn check(server_first: &str) {
            assert!(
                First::new(Binding::None).answer(server_first.as_bytes(), "pw").await.is_err(),
                "{server_first}"
            );
        }
        check("").await;
        check("r=other,s=AAAA,i=1").await;
        let first = First::new(Binding::NotOffered);
        assert!(first.message().starts_with("y,,n=,r="));
        let reply = format!("r={}x,s=AAAA,i=0", first.nonce);
        assert!(first.answer(reply.as_bytes(), "pw").await.is_err());
        let first = First::new(Binding::None);
        let reply = format!("r={},s=AAAA,i=1", first.nonce);
        assert!(first.answer(reply.as_bytes(), "pw").await.is_err());
    }
}

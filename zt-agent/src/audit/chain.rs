//! How lines are chained, hashed and signed.
//!
//! A line is one JSON object on one line, ended by `\n`. After the fields of
//! its kind come, in this order:
//!
//! | field | |
//! |---|---|
//! | `line` | counts from 1 within the chain, over rotation and restarts |
//! | `epoch` | 16 hex digits; names the set of kernel maps |
//! | `total` | *S* of this epoch after this line: all decisions recorded, and all lost after they were consumed |
//! | `lost` | losses of this epoch by cause after this line (`ring-full` is not part of `total`) |
//! | `previous` | `hash` of the line before; 64 zeros on line 1 |
//! | `hash` | below |
//! | `signature` | on checkpoints only |
//!
//! `hash` is the lower-case hex SHA-256 of the bytes of the line before
//! `,"hash":"`. (These bytes occur once: inside a JSON string a quotation mark
//! is escaped.) They hold `previous`, so each hash covers all lines before it.
//! `signature` is the hex Ed25519 signature of the 64 ASCII characters of
//! `hash`. To check a chain in Python:
//!
//! ```python
//! import hashlib, json, sys
//! previous = None
//! for number, line in enumerate(open(sys.argv[1], "rb"), 1):
//!     record = json.loads(line)
//!     text = line.split(b',"hash":"')[0]
//!     assert hashlib.sha256(text).hexdigest() == record["hash"], number
//!     assert previous in (None, record["previous"]), number
//!     previous = record["hash"]
//! ```

use std::{
    fmt,
    io::{self, Write as _},
};

use ed25519_dalek::{Signer, SigningKey};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    account::{Losses, Sums},
    record::Content,
};

/// What stands between the hashed bytes of a line and its hash.
pub const HASH_MARK: &str = ",\"hash\":\"";
/// What stands between a checkpoint's hash and its signature.
pub const SIGNATURE_MARK: &str = "\",\"signature\":\"";

/// SHA-256 of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    #[must_use]
    pub fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Exactly 64 lower-case hex digits, or `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Lower-case digits.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    // Twice for each line: the formatter would take longer than all the rest.
    let both = |byte: &u8| [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]);
    bytes.iter().flat_map(both).map(char::from).collect()
}

/// `2 * N` lower-case hex digits as bytes.
#[must_use]
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The chain up to and including some line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Of the last line; 0: there is none.
    pub line: u64,
    pub epoch: u64,
    /// Of `epoch`, after the last line.
    pub sums: Sums,
    /// Of the last line.
    pub hash: Hash,
}

impl Chain {
    /// The same chain, to be continued in `epoch`.
    #[must_use]
    pub fn in_epoch(self, epoch: u64) -> Self {
        let sums = if self.epoch == epoch {
            self.sums
        } else {
            Sums::default()
        };
        Self {
            epoch,
            sums,
            ..self
        }
    }

    /// Adds the next line, with its line end, to `lines`; gives the chain after it.
    ///
    /// # Errors
    /// None in practice; see [`Content::write_json`].
    pub fn append(
        &self,
        content: &Content,
        key: &SigningKey,
        lines: &mut Vec<u8>,
    ) -> io::Result<Self> {
        let begin = lines.len();
        let mut sums = self.sums;
        sums.apply(content.effect());
        let line = self.line.saturating_add(1);
        content.write_json(lines)?;
        lines.pop(); // its closing brace
        write!(
            lines,
            ",\"line\":{line},\"epoch\":\"{:016x}\",\"total\":{},\"lost\":",
            self.epoch,
            sums.total(),
        )?;
        serde_json::to_writer(&mut *lines, &sums.lost)?;
        write!(lines, ",\"previous\":\"{}\"", self.hash)?;
        let hash = Hash::of(&lines[begin..]);
        write!(lines, "{HASH_MARK}{hash}")?;
        if matches!(content, Content::Checkpoint(_)) {
            write!(lines, "{SIGNATURE_MARK}{}", sign(&hash, key))?;
        }
        lines.extend_from_slice(b"\"}\n");
        Ok(Self {
            line,
            sums,
            hash,
            ..*self
        })
    }

    /// The chain after a line that stands in a file.
    ///
    /// # Errors
    /// If it is none of ours, or was changed: what is wrong with it.
    pub fn after(line: &[u8]) -> Result<Self, String> {
        let (links, hash, _) = take_apart(line)?;
        links.chain(hash)
    }
}

fn sign(hash: &Hash, key: &SigningKey) -> String {
    hex(&key.sign(hash.to_string().as_bytes()).to_bytes())
}

/// The chain fields of a line.
#[derive(Debug, Deserialize)]
pub struct Links {
    pub line: u64,
    pub epoch: String,
    pub total: u64,
    pub lost: Losses,
    pub previous: String,
}

impl Links {
    /// The chain after this line.
    ///
    /// # Errors
    /// What is wrong with the fields.
    pub fn chain(&self, hash: Hash) -> Result<Chain, String> {
        let epoch =
            parse_hex(&self.epoch).ok_or_else(|| "epoch is not 16 hex digits".to_owned())?;
        let sums = Sums::stated(self.total, self.lost)
            .ok_or_else(|| "more losses than its total".to_owned())?;
        Ok(Chain {
            line: self.line,
            epoch: u64::from_be_bytes(epoch),
            sums,
            hash,
        })
    }
}

/// Splits a line (without its line end) and checks its own hash. Returns the
/// chain fields, the hash and the signature, if any.
///
/// # Errors
/// What is wrong with it.
pub fn take_apart(line: &[u8]) -> Result<(Links, Hash, Option<&str>), String> {
    let line = str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    let links = serde_json::from_str(line).map_err(|error| format!("it is no record: {error}"))?;
    let (text, rest) = line.split_once(HASH_MARK).ok_or("it has no hash")?;
    let rest = rest
        .strip_suffix("\"}")
        .ok_or("something follows its hash")?;
    let (hash, signature) = match rest.split_once(SIGNATURE_MARK) {
        Some((hash, signature)) => (hash, Some(signature)),
        None => (rest, None),
    };
    let stated = Hash::parse(hash).ok_or("its hash is not 64 hex digits")?;
    if Hash::of(text.as_bytes()) != stated {
        return Err("its contents do not match its hash: it was changed".to_owned());
    }
    Ok((links, stated, signature))
}

#[cfg(test)]
mod tests {
    use super::super::{
        account::Cause,
        record::{Loss, Time},
        testing::{event, record},
    };
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn loss() -> Content {
        Content::Loss(Loss::new(Time(0), Cause::Killed, 5))
    }

    fn append(chain: &Chain, content: &Content) -> (Chain, String) {
        // After another line, which is none of its business.
        let mut lines = b"another\n".to_vec();
        let next = chain.append(content, &key(), &mut lines).unwrap();
        (next, String::from_utf8(lines.split_off(8)).unwrap())
    }

    #[test]
    fn a_line_has_exactly_these_bytes() {
        let chain = Chain::default().in_epoch(0xab);
        let (next, line) = append(&chain, &loss());
        let text = format!(
            r#"{{"kind":"loss","timestamp":"1970-01-01T00:00:00.000000000Z","cause":"killed","count":5,"line":1,"epoch":"00000000000000ab","total":5,"lost":{{"killed":5}},"previous":"{}""#,
            "0".repeat(64)
        );
        let hash = Hash::of(text.as_bytes());
        assert_eq!(line, format!("{text},\"hash\":\"{hash}\"}}\n"));
        assert_eq!(next.hash, hash);
    }

    #[test]
    fn the_chain_is_continued_from_its_last_line_alone() {
        let chain = Chain::default().in_epoch(3);
        let decision = Content::Decision(record(&event()));
        let (chain, _) = append(&chain, &decision);
        let (chain, line) = append(&chain, &loss());
        assert_eq!(Chain::after(line.trim_end().as_bytes()), Ok(chain));
        assert_eq!((chain.line, chain.sums.total()), (2, 6));
        assert_eq!(chain.in_epoch(4).sums, Sums::default());
        assert_eq!(chain.in_epoch(3).sums, chain.sums);
    }

    #[test]
    fn no_text_can_pretend_to_be_a_hash() {
        let mut nasty = (*record(&event())).clone();
        nasty.source.pod = Some(format!("a{HASH_MARK}b\n\u{0}\"}}").into());
        let content = Content::Decision(nasty.into());
        let (next, line) = append(&Chain::default(), &content);
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(Chain::after(line.trim_end().as_bytes()), Ok(next));
    }

    #[test]
    fn nothing_may_follow_the_hash() {
        let (_, line) = append(&Chain::default(), &loss());
        let line = line.trim_end();
        assert!(Chain::after(line.as_bytes()).is_ok());
        for changed in [
            line.replace("\"}", "\",\"note\":\"x\"}"),
            line.replace("\"}", "\" }"),
            line.replace("\"}", "\"} "),
            line.replace(HASH_MARK, ", \"hash\":\""),
            line.to_uppercase(),
            String::new(),
        ] {
            assert!(Chain::after(changed.as_bytes()).is_err(), "{changed}");
        }
    }
}

//! Names of interfaces that are ours to govern.

use std::{fmt, str::FromStr, sync::Arc};

/// Bytes of an interface's name, without the final zero.
const LONGEST: usize = 15;

/// A name, or the beginning of names: `veth*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfacePattern {
    text: Arc<str>,
    is_prefix: bool,
}

/// A text that is no pattern of interface names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no pattern of interface names: {why}")]
pub struct NoPattern {
    pub text: String,
    pub why: &'static str,
}

impl InterfacePattern {
    /// What a name must be, or begin with.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is only the beginning.
    #[must_use]
    pub fn is_prefix(&self) -> bool {
        self.is_prefix
    }

    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.is_prefix {
            name.starts_with(&*self.text)
        } else {
            name == &*self.text
        }
    }
}

impl FromStr for InterfacePattern {
    type Err = NoPattern;

    fn from_str(text: &str) -> Result<Self, NoPattern> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let why = match name {
            "" if is_prefix => "it matches every interface of the node; name a prefix",
            "" => "it is empty",
            "." | ".." => "no interface can have that name",
            _ if name.len() > LONGEST => "names have at most 15 bytes",
            _ if name.contains('*') => "`*` can only be its end",
            _ if name.contains(|c: char| {
                c == '/' || c == ':' || c.is_whitespace() || c.is_control()
            }) =>
            {
                "names have no spaces, `/` or `:`"
            }
            _ => {
                return Ok(Self {
                    text: name.into(),
                    is_prefix,
                });
            }
        };
        Err(NoPattern {
            text: text.to_owned(),
            why,
        })
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_str(if self.is_prefix { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> InterfacePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_at_the_end_matches_what_begins_so_and_a_plain_name_only_itself() {
        let prefix = pattern("veth*");
        assert!(prefix.matches("veth") && prefix.matches("veth1a2b"));
        assert!(!prefix.matches("vet") && !prefix.matches("xveth1"));
        let exact = pattern("eth0");
        assert!(exact.matches("eth0") && !exact.matches("eth01"));
        assert_eq!(
            (prefix.to_string(), exact.to_string()),
            ("veth*".into(), "eth0".into())
        );
    }

    #[test]
    fn a_pattern_of_everything_or_of_no_possible_name_is_refused() {
        for text in [
            "",
            "*",
            "**",
            "a*b",
            "a**",
            "a b",
            "a/b",
            "a:b",
            ".",
            "..",
            "sixteen-bytes-xx",
        ] {
            assert!(text.parse::<InterfacePattern>().is_err(), "{text}");
        }
        assert!("fifteen-bytes-x*".parse::<InterfacePattern>().is_ok());
    }
}

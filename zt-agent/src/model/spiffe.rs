//! SPIFFE IDs and the patterns that select them.

use std::{fmt, str::FromStr, sync::Arc};

/// The maximum length of a SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
const MAX_LEN: usize = zt_common::identity::NAME_LEN;
const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE ID or pattern. Written for the author of a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("must start with \"spiffe://\"")]
    Scheme,
    #[error("has no trust domain; write spiffe://TRUST-DOMAIN/PATH")]
    EmptyTrustDomain,
    #[error("trust domain {0:?} may hold only a-z, 0-9, '.', '-' and '_' (lower case)")]
    TrustDomain(String),
    #[error("has no path: it names a trust domain, not a workload")]
    NoPath,
    #[error("has an empty path segment (a double or trailing '/')")]
    EmptySegment,
    #[error("path segment {0:?} is not allowed: '.' and '..' mean nothing here")]
    DotSegment(String),
    #[error("path segment {0:?} may hold only A-Z, a-z, 0-9, '.', '-' and '_'")]
    Segment(String),
    #[error("is longer than 2048 bytes")]
    TooLong,
    #[error("'**' stands for the rest of the path and can only be the last segment")]
    RestNotLast,
    #[error("path segment {0:?} mixes '*' with other characters; '*' is one whole segment")]
    PartialWildcard(String),
}

/// A valid SPIFFE ID with a path, kept as it was written (it has exactly one
/// spelling: comparison is byte by byte).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text itself, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// The trust domain, without the scheme.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.split().0
    }

    /// The path segments.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.split().1.split('/')
    }

    fn split(&self) -> (&str, &str) {
        self.0[SCHEME.len()..].split_once('/').unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let (_, segments) = parse(text)?;
        for segment in segments {
            check_segment(segment)?;
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID in which a segment may be `*` (exactly one segment) and the
/// last may be `**` (the rest: one segment or more).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffePattern {
    text: Arc<str>,
}

impl SpiffePattern {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it has no wildcard and so names exactly one identity.
    #[must_use]
    pub fn exact(&self) -> Option<SpiffeId> {
        self.text.parse().ok()
    }

    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let (domain, path) = self.text[SCHEME.len()..]
            .split_once('/')
            .unwrap_or_default();
        if domain != id.trust_domain() {
            return false;
        }
        let mut wanted = path.split('/');
        let mut found = id.segments();
        loop {
            match (wanted.next(), found.next()) {
                (Some("**"), Some(_)) | (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(want), Some(have)) if want == have => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for SpiffePattern {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let (_, segments) = parse(text)?;
        let mut rest = false;
        for segment in segments {
            if rest {
                return Err(SpiffeError::RestNotLast);
            }
            match segment {
                "*" => {}
                "**" => rest = true,
                other if other.contains('*') => {
                    return Err(SpiffeError::PartialWildcard(other.to_owned()));
                }
                other => check_segment(other)?,
            }
        }
        Ok(Self { text: text.into() })
    }
}

impl fmt::Display for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse(text: &str) -> Result<(&str, std::str::Split<'_, char>), SpiffeError> {
    if text.len() > MAX_LEN {
        return Err(SpiffeError::TooLong);
    }
    let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    if domain.is_empty() {
        return Err(SpiffeError::EmptyTrustDomain);
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    if !domain.chars().all(allowed) {
        return Err(SpiffeError::TrustDomain(domain.to_owned()));
    }
    if path.is_empty() {
        return Err(SpiffeError::NoPath);
    }
    Ok((domain, path.split('/')))
}

fn check_segment(segment: &str) -> Result<(), SpiffeError> {
    let allowed = |c: char| matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    match segment {
        "" => Err(SpiffeError::EmptySegment),
        "." | ".." => Err(SpiffeError::DotSegment(segment.to_owned())),
        _ if segment.chars().all(allowed) => Ok(()),
        _ => Err(SpiffeError::Segment(segment.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        text.parse().unwrap()
    }

    #[test]
    fn the_seeds_identities_are_valid() {
        let gateway = id("spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway");
        assert_eq!(gateway.trust_domain(), "hanzo.ai");
        assert_eq!(
            gateway.segments().collect::<Vec<_>>(),
            ["hanzo-k8s", "hanzo", "gateway"]
        );
    }

    #[test]
    fn what_is_no_spiffe_id_is_told_why() {
        use SpiffeError as E;
        for (text, error) in [
            ("https://td/x", E::Scheme),
            ("SPIFFE://td/x", E::Scheme),
            ("spiffe:///x", E::EmptyTrustDomain),
            ("spiffe://TD/x", E::TrustDomain("TD".into())),
            ("spiffe://td", E::NoPath),
            ("spiffe://td/", E::NoPath),
            ("spiffe://td/a//b", E::EmptySegment),
            ("spiffe://td/a/", E::EmptySegment),
            ("spiffe://td/../b", E::DotSegment("..".into())),
            ("spiffe://td/a%20b", E::Segment("a%20b".into())),
            ("spiffe://td/*", E::Segment("*".into())),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(error), "{text}");
        }
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        assert_eq!(long.parse::<SpiffeId>(), Err(E::TooLong));
    }

    #[test]
    fn a_star_is_exactly_one_segment() {
        let pattern: SpiffePattern = "spiffe://td/c/ns/*".parse().unwrap();
        assert!(pattern.matches(&id("spiffe://td/c/ns/a")));
        for no in [
            "spiffe://td/c/ns/a/b",
            "spiffe://td/c/ns",
            "spiffe://other/c/ns/a",
            "spiffe://td/c/n/a",
        ] {
            assert!(!pattern.matches(&id(no)), "{no}");
        }
    }

    #[test]
    fn two_stars_are_the_rest_and_at_least_one_segment() {
        let pattern: SpiffePattern = "spiffe://td/c/**".parse().unwrap();
        assert!(pattern.matches(&id("spiffe://td/c/a")));
        assert!(pattern.matches(&id("spiffe://td/c/a/b/c")));
        assert!(!pattern.matches(&id("spiffe://td/c")));
    }

    #[test]
    fn wildcards_stand_for_whole_segments_only() {
        assert_eq!(
            "spiffe://td/a*".parse::<SpiffePattern>(),
            Err(SpiffeError::PartialWildcard("a*".into()))
        );
        assert_eq!(
            "spiffe://td/**/a".parse::<SpiffePattern>(),
            Err(SpiffeError::RestNotLast)
        );
    }

    #[test]
    fn a_dot_is_a_character_and_case_counts() {
        let pattern: SpiffePattern = "spiffe://td/ns/a.b".parse().unwrap();
        assert!(!pattern.matches(&id("spiffe://td/ns/axb")));
        assert!(!pattern.matches(&id("spiffe://td/ns/A.b")));
    }
}

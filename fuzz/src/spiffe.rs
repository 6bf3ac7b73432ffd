//! SPIFFE IDs and the patterns that select them: a line of each.

use zt_agent::model::{SpiffeId, SpiffePattern};

/// Reads the first line of `bytes` as an identity and the second as a pattern,
/// and checks what comes of them.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let (first, second) = text.split_once('\n').unwrap_or((text, ""));
    let id = first.parse::<SpiffeId>();
    assert_eq!(id.is_ok(), is_spiffe(first, false), "{first:?}: {id:?}");
    let pattern = second.parse::<SpiffePattern>();
    assert_eq!(
        pattern.is_ok(),
        is_spiffe(second, true),
        "{second:?}: {pattern:?}"
    );
    if let Ok(id) = &id {
        check_id(id, first);
    }
    if let (Ok(id), Ok(pattern)) = (&id, &pattern) {
        check_match(id, pattern);
    }
}

fn check_id(id: &SpiffeId, text: &str) {
    assert_eq!(id.to_string(), text, "it has one spelling");
    let path: String = id.segments().map(|segment| format!("/{segment}")).collect();
    assert_eq!(format!("spiffe://{}{path}", id.trust_domain()), text);
    // An identity is a pattern that selects itself and nothing else.
    let pattern: SpiffePattern = (text.parse()).unwrap_or_else(|error| panic!("{error}"));
    assert!(pattern.matches(id), "{text} does not select itself");
    assert_eq!(pattern.exact().as_ref(), Some(id));
}

fn check_match(id: &SpiffeId, pattern: &SpiffePattern) {
    let parts = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
    let expected = selects(&parts(pattern.as_str()), &parts(id.as_str()));
    assert_eq!(pattern.matches(id), expected, "{pattern} and {id}");
    if let Some(exact) = pattern.exact() {
        assert_eq!(pattern.matches(id), exact == *id, "{pattern} and {id}");
    }
}

/// The written meaning, segment by segment.
fn selects(pattern: &[String], id: &[String]) -> bool {
    match (pattern, id) {
        ([], []) => true,
        ([rest], [_, ..]) if rest == "**" => true,
        ([want, pattern @ ..], [have, id @ ..]) => {
            (want == "*" || want == have) && selects(pattern, id)
        }
        _ => false,
    }
}

/// The SPIFFE ID specification, sections 2 to 2.3; a path is required here.
fn is_spiffe(text: &str, is_pattern: bool) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let [scheme, "", domain, path @ ..] = &*parts else {
        return false;
    };
    let last = path.len().saturating_sub(1);
    text.len() <= 2048
        && *scheme == "spiffe:"
        && is_word(domain, false)
        && !path.is_empty()
        && path.iter().enumerate().all(|(index, segment)| {
            let wildcard = *segment == "*" || *segment == "**" && index == last;
            is_word(segment, true) && !matches!(*segment, "." | "..") || is_pattern && wildcard
        })
}

fn is_word(text: &str, upper: bool) -> bool {
    let allowed = |byte: u8| match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => true,
        b'A'..=b'Z' => upper,
        _ => false,
    };
    !text.is_empty() && text.bytes().all(allowed)
}

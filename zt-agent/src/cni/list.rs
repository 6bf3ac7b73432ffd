//! A network's list of plugins, with and without this one. Nothing else in the
//! text is changed.

use serde_json::Value;

use super::{
    NAME,
    config::VERSIONS,
    json::{self, Span},
};

/// Why a list cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("it is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "it has no list of `plugins`, or an empty one: zt-agent-cni must come after a plugin that makes interfaces"
    )]
    NoPlugins,
    #[error("it has `plugins` twice")]
    Twice,
    #[error("its cniVersion is {0:?}; set it to one of {list}", list = VERSIONS.join(", "))]
    Version(String),
}

/// The list with this plugin at its end, or changed where it is already. `None`:
/// it is as it should be.
pub fn with(text: &str, plugin: &Value) -> Result<Option<String>, ListError> {
    let plugins = plugins(text)?;
    let last = plugins.last().ok_or(ListError::NoPlugins)?;
    let mut ours = Vec::new();
    for span in &plugins {
        let value: Value = serde_json::from_str(part(text, span))?;
        if is_ours(&value) {
            ours.push((span, value));
        }
    }
    match &ours[..] {
        [] => {}
        [(_, value)] if value == plugin => return Ok(None),
        [(span, _)] => return Ok(Some(replaced(text, span, &plugin.to_string()))),
        // Somebody copied it: once is enough.
        _ => return with(&without(text)?.unwrap_or_default(), plugin),
    }
    let before = text.get(..last.start).unwrap_or_default();
    let space = part(text, &(before.trim_end().len()..last.start));
    let end = last.end..last.end;
    Ok(Some(replaced(text, &end, &format!(",{space}{plugin}"))))
}

/// The list without this plugin. `None`: it is not in it.
pub fn without(text: &str) -> Result<Option<String>, ListError> {
    let mut found = None;
    // Each time one less.
    while let Some(less) = without_one(found.as_deref().unwrap_or(text))? {
        found = Some(less);
    }
    Ok(found)
}

fn without_one(text: &str) -> Result<Option<String>, ListError> {
    let plugins = plugins(text)?;
    for (place, span) in plugins.iter().enumerate() {
        if !is_ours(&serde_json::from_str(part(text, span))?) {
            continue;
        }
        let before = place.checked_sub(1).and_then(|place| plugins.get(place));
        // With the comma before it, or else the one after it.
        let gone = match (before, plugins.get(place + 1)) {
            (Some(before), _) => before.end..span.end,
            (None, Some(after)) => span.start..after.start,
            (None, None) => span.clone(),
        };
        return Ok(Some(replaced(text, &gone, "")));
    }
    Ok(None)
}

fn plugins(text: &str) -> Result<Vec<Span>, ListError> {
    // Also what comes after it is understood.
    let whole: Value = serde_json::from_str(text)?;
    let version = whole
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(ListError::Version(version.to_owned()));
    }
    let members = json::members(text)?;
    let mut plugins = members.iter().filter(|(name, _)| name == "plugins");
    let (_, array) = plugins.next().ok_or(ListError::NoPlugins)?;
    if plugins.next().is_some() {
        return Err(ListError::Twice);
    }
    json::elements(text, array).map_err(|_| ListError::NoPlugins)
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(NAME)
}

fn part<'a>(text: &'a str, span: &Span) -> &'a str {
    text.get(span.clone()).unwrap_or_default()
}

fn replaced(text: &str, span: &Span, new: &str) -> String {
    let before = text.get(..span.start).unwrap_or_default();
    let after = text.get(span.end..).unwrap_or_default();
    format!("{before}{new}{after}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: &str = r#"{
  "name": "pods", "cniVersion": "1.0.0",
  "plugins": [
    {"type": "bridge", "zeta": 1, "alpha": 1.10, "ipam": {"type": "host-local"}},
    {
      "type": "portmap"
    }
  ],
  "x": "ü"
}
"#;

    fn ours() -> Value {
        json!({"type": NAME, "timeoutSeconds": 30})
    }

    #[test]
    fn it_comes_last_and_no_other_byte_changes() {
        let text = with(LIST, &ours()).unwrap().unwrap();
        let added = format!(",\n    {}", ours());
        assert_eq!(text.replacen(&added, "", 1), LIST);
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["plugins"][2], ours());
        assert_eq!(with(&text, &ours()).unwrap(), None, "it is there");
        assert_eq!(without(&text).unwrap().unwrap(), LIST);
        assert_eq!(without(LIST).unwrap(), None);
    }

    #[test]
    fn other_options_take_the_place_of_those_before_and_copies_go() {
        let once = with(LIST, &ours()).unwrap().unwrap();
        let other = json!({"type": NAME, "timeoutSeconds": 60});
        let changed = with(&once, &other).unwrap().unwrap();
        assert_eq!(changed, once.replace("30", "60"));
        let copy = once.replace(&ours().to_string(), &format!("{}, {}", ours(), ours()));
        assert_eq!(with(&copy, &ours()).unwrap().unwrap(), once);
        assert_eq!(without(&copy).unwrap().unwrap(), LIST);
    }

    #[test]
    fn it_can_be_taken_from_the_front_or_alone() {
        let list = |plugins: &str| format!(r#"{{"cniVersion":"0.4.0","plugins":[{plugins}]}}"#);
        let first = format!(r#"{}, {{"type":"bridge"}}"#, ours());
        let expected = list(r#"{"type":"bridge"}"#);
        assert_eq!(without(&list(&first)).unwrap().unwrap(), expected);
        let alone = list(&ours().to_string());
        assert_eq!(without(&alone).unwrap().unwrap(), list(""));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "nonsense",
            r#"{"cniVersion":"1.0.0"}"#,
            r#"{"cniVersion":"1.0.0","plugins":{}}"#,
            r#"{"cniVersion":"1.0.0","plugins":[]}"#,
            r#"{"cniVersion":"0.2.0","plugins":[{"type":"bridge"}]}"#,
            r#"{"plugins":[{"type":"bridge"}]}"#,
            r#"{"cniVersion":"1.0.0","plugins":[{}],"plugins":[{}]}"#,
        ] {
            assert!(with(text, &ours()).is_err(), "{text}");
        }
    }
}

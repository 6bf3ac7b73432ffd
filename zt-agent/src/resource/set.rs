//! All resources of a cluster, each accepted or refused by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Kind;
use crate::document::{SourceFile, policy};
use crate::model::{Policy, Problem};

/// What is wrong with one resource, or with all of them together.
pub type Refusal = Vec<Problem>;

/// The policies in the order in which they were given.
///
/// A bad policy rejects itself and not its neighbours. So does a bad group, but
/// with it go the policies that name it: a group of nobody in its place would make
/// a deny of theirs an open door. For whatever is refused the last accepted version
/// stays in force; to keep it is the caller's business.
///
/// # Errors
/// When those that are good by themselves are too much together; then none of them
/// is new.
pub fn policies(
    groups: &[SourceFile],
    policies: &[SourceFile],
) -> Result<Vec<Result<Policy, Refusal>>, Refusal> {
    let groups = groups
        .iter()
        .filter(|group| problems_of_group(group).is_empty());
    let groups: Vec<SourceFile> = groups.cloned().collect();
    let together = |policies: &[SourceFile]| policy::parse(&[policies, &groups[..]].concat());
    if let Ok(all) = together(policies) {
        return Ok(all.into_iter().map(Ok).collect());
    }
    let by_name = groups.iter().map(|group| (&*group.name, group));
    let by_name: BTreeMap<&str, &SourceFile> = by_name.collect();
    // Each with its own groups alone: all of them, for each of many, take long.
    let alone = |document: &SourceFile| {
        let named = groups_named(document);
        let groups = named
            .iter()
            .filter_map(|name| by_name.get(&**name).copied());
        let files: Vec<SourceFile> = [document].into_iter().chain(groups).cloned().collect();
        policy::parse(&files).err()
    };
    let refusals: Vec<Option<Refusal>> = policies.iter().map(alone).collect();
    let good = policies.iter().zip(&refusals);
    let good = good.filter(|(_, refusal)| refusal.is_none());
    let good: Vec<SourceFile> = good.map(|(policy, _)| policy.clone()).collect();
    let mut accepted = together(&good)?.into_iter();
    let next = |refusal: Option<Refusal>| match refusal {
        Some(refusal) => Some(Err(refusal)),
        None => accepted.next().map(Ok),
    };
    Ok(refusals.into_iter().filter_map(next).collect())
}

/// The groups that a policy's document names, as their documents are called.
#[must_use]
pub fn groups_named(document: &SourceFile) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let object = serde_json::from_str(&document.text).unwrap_or_default();
    name_groups(&object, &mut named);
    named
}

fn name_groups(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(name)) = fields.get("group") {
                found.insert(format!("{}/{name}", Kind::IdentityGroup.singular()));
            }
            fields.values().for_each(|value| name_groups(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| name_groups(value, found)),
        _ => {}
    }
}

/// What is wrong with a group; nothing if it is good.
#[must_use]
pub fn problems_of_group(group: &SourceFile) -> Refusal {
    policy::parse(std::slice::from_ref(group))
        .err()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::document;

    fn policy(name: &str, group: &str, port: u32) -> SourceFile {
        let target = json!({"group": group, "ports": [port]});
        let spec = json!({"rules": [{"action": "deny", "from": {"spiffe": "spiffe://td/a"}, "to": [target]}]});
        object(Kind::ServiceAccessPolicy, name, &spec)
    }

    fn group(name: &str, member: &str) -> SourceFile {
        object(Kind::IdentityGroup, name, &json!({"members": [member]}))
    }

    fn object(kind: Kind, name: &str, spec: &Value) -> SourceFile {
        document(kind, &json!({"metadata": {"name": name}, "spec": spec}))
    }

    #[test]
    fn one_bad_policy_among_many_costs_little() {
        let count = 400;
        let members = vec![json!("spiffe://td/b"); 200];
        let groups: Vec<SourceFile> = (0..count)
            .map(|n| {
                object(
                    Kind::IdentityGroup,
                    &format!("g{n}"),
                    &json!({"members": members}),
                )
            })
            .collect();
        let files = |bad: Option<u32>| -> Vec<SourceFile> {
            let file = |n| {
                policy(
                    &format!("p{n}"),
                    &format!("g{n}"),
                    u32::from(bad != Some(n)),
                )
            };
            (0..count).map(file).collect()
        };
        let parsed: usize = files(None).iter().map(|one| groups_named(one).len()).sum();
        assert_eq!(parsed, groups.len(), "each reads its own");
        let timed = |files: &[SourceFile]| {
            let started = std::time::Instant::now();
            let read = outcome(&groups, files);
            let bad = read.iter().filter(|one| one.is_err()).count();
            (bad, started.elapsed())
        };
        let (none, all_good) = timed(&files(None));
        let (one, one_bad) = timed(&files(Some(7)));
        assert_eq!((none, one), (0, 1));
        // If each were read with all groups, it would be as many times as there are.
        assert!(one_bad < all_good * 20, "{all_good:?}, {one_bad:?}");
    }

    /// Their names, or the first problem's field.
    fn outcome(groups: &[SourceFile], files: &[SourceFile]) -> Vec<Result<String, String>> {
        let read = policies(groups, files).unwrap().into_iter();
        let short = read.map(|one| match one {
            Ok(policy) => Ok(policy.name.to_string()),
            Err(refusal) => Err(format!("{} {}", refusal[0].at.file, refusal[0].field)),
        });
        short.collect()
    }

    #[test]
    fn a_bad_policy_rejects_itself_and_not_its_neighbours() {
        let groups = [group("g", "spiffe://td/b")];
        let files = [
            policy("a", "g", 80),
            policy("b", "g", 0),
            policy("c", "g", 443),
        ];
        let bad = "serviceaccesspolicy/b spec.rules[1].to[1].ports[1]";
        let ok = |name: &str| Ok(name.to_owned());
        assert_eq!(
            outcome(&groups, &files),
            [ok("a"), Err(bad.to_owned()), ok("c")]
        );
        assert_eq!(outcome(&groups, &[policy("a", "g", 1)]), [ok("a")]);
        assert_eq!(outcome(&[], &[]), []);
    }

    #[test]
    fn a_bad_group_takes_with_it_only_the_policies_that_name_it() {
        let groups = [group("bad", "nobody"), group("g", "spiffe://td/b")];
        let files = [policy("a", "bad", 80), policy("b", "g", 80)];
        let refused = "serviceaccesspolicy/a spec.rules[1].to[1].group";
        assert_eq!(
            outcome(&groups, &files),
            [Err(refused.to_owned()), Ok("b".to_owned())]
        );
        assert_eq!(problems_of_group(&groups[0])[0].field, "spec.members[1]");
        assert_eq!(problems_of_group(&groups[1]), []);
    }
}

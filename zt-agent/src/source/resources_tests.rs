use serde_json::{Value, json};

use super::*;
use crate::resource::{Kind, document};

fn told(kind: Kind, name: &str, uid: u128, generation: i64, spec: &Value) -> Told {
    Told {
        name: name.into(),
        uid: Uid::new(uid),
        generation,
        document: document(kind, &json!({"metadata": {"name": name}, "spec": spec})),
    }
}

/// Of one rule to a group, at a port.
fn policy(name: &str, uid: u128, generation: i64, port: Value) -> Told {
    let target = json!({"group": "g", "ports": [port]});
    let spec = json!({"rules": [{"from": {"spiffe": "spiffe://td/a"}, "to": [target]}]});
    told(Kind::ServiceAccessPolicy, name, uid, generation, &spec)
}

fn group(member: &str) -> Told {
    let spec = json!({"members": [member]});
    told(Kind::IdentityGroup, "g", 99, 1, &spec)
}

fn listing(policies: impl IntoIterator<Item = Told>) -> Listing {
    Listing {
        policies: policies.into_iter().collect(),
        groups: vec![group("spiffe://td/b")],
    }
}

fn decide(listing: &Listing, before: &Resources) -> (Resources, Vec<Refused>) {
    listing.decide(before, &BTreeSet::new())
}

fn generations(resources: &Resources) -> Vec<(String, i64)> {
    let all = resources.0.iter();
    all.map(|(name, taken)| (name.to_string(), taken.generation))
        .collect()
}

fn expected(all: &[(&str, i64)]) -> Vec<(String, i64)> {
    let all = all.iter();
    all.map(|(name, number)| ((*name).to_owned(), *number))
        .collect()
}

/// What only the parser refuses.
fn reversed() -> Value {
    json!("8010-8000")
}

#[test]
fn the_last_good_version_of_a_bad_policy_stays_and_its_neighbours_go_on() {
    let first = listing([policy("a", 1, 1, json!(80)), policy("b", 2, 1, json!(80))]);
    let (before, refused) = decide(&first, &Resources::default());
    assert_eq!(refused, []);
    let second = listing([policy("a", 1, 2, reversed()), policy("b", 2, 2, json!(81))]);
    let (after, refused) = decide(&second, &before);
    assert_eq!(generations(&after), expected(&[("a", 1), ("b", 2)]));
    assert_eq!(after.0["a"], before.0["a"]);
    let [refused] = &refused[..] else {
        panic!("{refused:?}")
    };
    assert_eq!(refused.resource, "serviceaccesspolicy/a");
    assert_eq!(refused.field, "spec.rules[1].to[1].ports[1]");
}

#[test]
fn a_policy_that_is_gone_goes_and_the_next_of_its_name_inherits_nothing() {
    let (before, _) = decide(
        &listing([policy("a", 1, 1, json!(80))]),
        &Resources::default(),
    );
    assert!(decide(&listing([]), &before).0.is_empty());
    let (after, refused) = decide(&listing([policy("a", 2, 1, reversed())]), &before);
    assert_eq!((after.len(), refused.len()), (0, 1));
}

#[test]
fn an_older_version_does_not_come_back_and_the_next_of_its_name_is_no_version_of_it() {
    let (before, _) = decide(
        &listing([policy("a", 1, 5, json!(80))]),
        &Resources::default(),
    );
    let (after, refused) = decide(&listing([policy("a", 1, 4, json!(22))]), &before);
    assert_eq!(after, before);
    assert_eq!(refused[0].field, "metadata.generation");
    let (after, refused) = decide(&listing([policy("a", 2, 1, json!(22))]), &before);
    assert_eq!(
        (generations(&after), refused),
        (expected(&[("a", 1)]), vec![])
    );
}

#[test]
fn the_groups_of_the_last_good_version_stay_with_it() {
    let good = listing([policy("a", 1, 1, json!(80))]);
    let (before, _) = decide(&good, &Resources::default());
    for groups in [vec![], vec![group("nobody")]] {
        let bad = Listing {
            groups,
            ..good.clone()
        };
        let (after, refused) = decide(&bad, &before);
        assert_eq!(after, before);
        let about = refused.iter().map(|one| &*one.resource).collect::<Vec<_>>();
        assert!(about.contains(&"serviceaccesspolicy/a"), "{about:?}");
    }
    let other = Listing {
        groups: vec![group("spiffe://td/c")],
        ..good
    };
    let (after, refused) = decide(&other, &before);
    assert!(refused.is_empty() && after != before, "a group may change");
}

#[test]
fn what_was_kept_is_what_is_read() {
    let all = listing([
        policy("a", 1, 1, json!(80)),
        policy("b", 2, 7, json!("1-9")),
    ]);
    let (resources, _) = decide(&all, &Resources::default());
    let read = Resources::parse(&resources.render().unwrap()).unwrap();
    assert_eq!(read, resources);
    assert_eq!(Resources::parse("[]").unwrap(), Resources::default());
    assert!(Resources::parse("").is_err());
    let mut spoilt = resources;
    let file = SourceFile::new("serviceaccesspolicy/a", "{}");
    spoilt.0.get_mut("a").unwrap().documents = vec![file];
    let error = Resources::parse(&spoilt.render().unwrap()).unwrap_err();
    assert!(error.to_string().contains("serviceaccesspolicy/a"));
}

#[test]
fn a_file_of_the_same_name_counts_instead() {
    let (before, _) = decide(
        &listing([policy("a", 1, 1, json!(80))]),
        &Resources::default(),
    );
    let names = BTreeSet::from(["a".into()]);
    let both = listing([policy("a", 1, 1, json!(80)), policy("b", 2, 1, json!(80))]);
    let (after, refused) = both.decide(&before, &names);
    assert_eq!(generations(&after), expected(&[("b", 1)]));
    assert_eq!(refused[0].field, "metadata.name");
    assert!(before.without(&names).is_empty());
}

#[test]
fn a_verdict_says_what_is_in_force_and_why_not_the_latest() {
    let (before, _) = decide(
        &listing([policy("a", 1, 1, json!(80))]),
        &Resources::default(),
    );
    let good = listing([policy("a", 1, 1, json!(80))]);
    let one = |resources: &Resources, listing: &Listing, refused: &[Refused], unenforced| {
        let all = resources.verdicts(listing, refused, Some("too much"), None, unenforced);
        let verdict = all.into_iter().next().unwrap();
        (
            verdict.generation,
            verdict.enforced,
            verdict.reason,
            verdict.rules,
        )
    };
    let fine = (1, true, String::new(), Some(1));
    assert_eq!(one(&before, &good, &[], None), fine);
    let unenforced = one(&before, &good, &[], Some("the node is in audit mode"));
    assert_eq!(
        (unenforced.1, &*unenforced.2),
        (false, "the node is in audit mode")
    );

    let bad = listing([policy("a", 1, 2, reversed())]);
    let (after, refused) = decide(&bad, &before);
    let (generation, enforced, reason, rules) = one(&after, &bad, &refused, None);
    assert_eq!((generation, enforced, rules), (1, true, None));
    assert!(
        reason.starts_with("spec.rules[1].to[1].ports[1]: "),
        "{reason}"
    );

    let next = listing([policy("a", 1, 2, json!(81))]);
    let not_yet = (1, true, "too much".to_owned(), None);
    assert_eq!(one(&before, &next, &[], None), not_yet);
    let none = one(&Resources::default(), &next, &[], None);
    assert_eq!((none.0, none.1), (0, false));
}

#[test]
fn a_policy_is_the_latest_only_with_the_latest_of_its_groups() {
    let good = listing([policy("a", 1, 1, json!(80))]);
    let (before, _) = decide(&good, &Resources::default());
    let verdict = |listing: &Listing, refused: &[Refused]| {
        let all = before.verdicts(listing, refused, Some("too much"), None, None);
        all.into_iter().next().unwrap()
    };
    let with_group = |group| Listing {
        groups: vec![group],
        ..good.clone()
    };
    // Its new members are not in force.
    let other = with_group(group("spiffe://td/c"));
    let found = verdict(&other, &[]);
    assert_eq!((&*found.reason, found.rules), ("too much", None));
    // Nor can they be.
    let bad = with_group(group("nobody"));
    let (after, refused) = decide(&bad, &before);
    assert_eq!(after, before);
    let groups_only: Vec<Refused> = (refused.iter())
        .filter(|one| one.resource == "identitygroup/g")
        .cloned()
        .collect();
    let found = verdict(&bad, &groups_only);
    assert!(
        found.reason.starts_with("identitygroup/g: spec.members[1]"),
        "{}",
        found.reason
    );
    assert_eq!(found.rules, None);
    // A group that it does not name is none of its business.
    let mut more = good.clone();
    let mut stranger = told(Kind::IdentityGroup, "h", 98, 1, &json!({"members": []}));
    more.groups.push(stranger.clone());
    assert_eq!(verdict(&more, &[]).reason, "");
    stranger.generation = 2;
    assert_eq!(verdict(&good, &[]).rules, Some(1));
}

#[test]
fn a_policy_of_which_not_all_fits_says_so_and_is_not_enforced() {
    let all = listing([policy("a", 1, 1, json!(80)), policy("b", 2, 1, json!(80))]);
    let (resources, _) = decide(&all, &Resources::default());
    let names = BTreeSet::from(["b".into()]);
    let found = resources.verdicts(&all, &[], None, Some((&names, "it is full")), None);
    let found: Vec<_> = found.iter().map(|v| (v.enforced, &*v.reason)).collect();
    assert_eq!(found, [(true, ""), (false, "it is full")]);
}

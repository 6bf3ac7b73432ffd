//! The generated worlds really reach what they are meant to reach.

use std::{collections::BTreeMap, sync::LazyLock};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use zt_common::codes::{Reason, Verdict};
use zt_reference::{Answer, Peer, generate};

const PAIRS: usize = 2000;

/// The same pairs in every run.
static ANSWERS: LazyLock<Vec<Answer>> = LazyLock::new(answers);

fn answers() -> Vec<Answer> {
    let mut runner = TestRunner::deterministic();
    let case = generate::case();
    (0..PAIRS)
        .map(|_| {
            let (world, question) = case.new_tree(&mut runner).expect("no filter").current();
            world.answer(&question)
        })
        .collect()
}

fn tally<K: Ord>(of: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in of {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

#[test]
fn every_reason_of_a_first_packet_is_reached_and_allows_are_not_rare() {
    let reasons = tally(ANSWERS.iter().map(|answer| answer.reason));
    for reason in [
        Reason::AllowedByRule,
        Reason::LiveGrant,
        Reason::HostAllowed,
        Reason::NoPolicy,
        Reason::DeniedByRule,
        Reason::Unenrolled,
        Reason::Quarantined,
        Reason::GrantExpired,
        Reason::UnknownPeer,
        Reason::Conflict,
    ] {
        let count = reasons.get(&reason).copied().unwrap_or_default();
        assert!(count >= 5, "{reason:?} {count} times: {reasons:?}");
    }
    assert_eq!(reasons.len(), 10, "{reasons:?}");

    let verdicts = tally(ANSWERS.iter().map(|answer| answer.verdict));
    assert!(verdicts[&Verdict::Allow] >= PAIRS / 10, "{verdicts:?}");
    assert!(verdicts[&Verdict::WouldDeny] >= PAIRS / 20, "{verdicts:?}");
}

#[test]
fn every_kind_of_peer_is_reached_and_audit_policies_would_change_verdicts() {
    let peers = tally(ANSWERS.iter().map(|answer| match &answer.peer {
        Peer::Workload(_) => None,
        Peer::Reserved(number) => Some(*number),
        Peer::Address(_) => Some(zt_common::identity::WORLD),
        Peer::Service(_) => Some(zt_common::identity::FIRST_SPIFFE),
    }));
    // Workloads, Services, and every reserved identity but `unenrolled`.
    assert_eq!(peers.len(), 9, "{peers:?}");
    assert!(peers.values().all(|count| *count >= 5), "{peers:?}");

    let changed = ANSWERS
        .iter()
        .filter(|answer| answer.would.is_allow() != answer.reason.is_allow());
    assert!(changed.count() >= PAIRS / 100);
}

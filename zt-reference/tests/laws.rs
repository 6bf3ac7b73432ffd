//! What holds in every world, whatever the rules are.

use std::sync::Arc;

use proptest::prelude::*;
use zt_agent::model::{Policy, PolicyMode, Rule, RuleAction};
use zt_common::codes::{Reason, Verdict};
use zt_reference::{
    Answer, Question,
    generate::{self, World},
};

/// The world without the policies and rules that `keep` turns down.
fn with_rules(world: &World, keep: impl Fn(&Policy, &Rule) -> bool) -> World {
    let mut world = world.clone();
    for policy in &mut world.model.policies {
        let whole = policy.clone();
        Arc::make_mut(&mut policy.rules).retain(|rule| keep(&whole, rule));
    }
    world
}

/// Everything but `would`, which says what audited policies think.
fn in_force(answer: Answer) -> impl PartialEq + std::fmt::Debug {
    (answer.verdict, answer.reason, answer.rule, answer.peer)
}

fn lets_pass(world: &World, question: &Question) -> bool {
    world.answer(question).verdict == Verdict::Allow
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn deny_always_wins((world, question) in generate::case()) {
        let denies = with_rules(&world, |_, rule| rule.action == RuleAction::Deny);
        if denies.answer(&question).reason == Reason::DeniedByRule {
            prop_assert_eq!(world.answer(&question).reason, Reason::DeniedByRule);
        }
    }

    #[test]
    fn without_an_allow_only_host_passes((world, question) in generate::case()) {
        let mut world = with_rules(&world, |_, rule| rule.action == RuleAction::Deny);
        world.host_may_reach = false;
        prop_assert!(!lets_pass(&world, &question));
    }

    #[test]
    fn empty_selectors_select_nobody((mut world, question) in generate::case()) {
        for rule in world.model.policies.iter_mut().flat_map(|policy| Arc::make_mut(&mut policy.rules)) {
            if rule.number % 2 == 0 {
                rule.from.clear();
            } else {
                rule.to.iter_mut().for_each(|target| target.selectors.clear());
            }
        }
        let without = with_rules(&world, |_, _| false);
        prop_assert_eq!(world.answer(&question), without.answer(&question));
    }

    #[test]
    fn audited_policies_change_nothing_that_is_in_force((world, question) in generate::case()) {
        let without = with_rules(&world, |policy, _| policy.mode == PolicyMode::Enforce);
        prop_assert_eq!(
            in_force(world.answer(&question)),
            in_force(without.answer(&question))
        );
        let enforced = without.answer(&question);
        prop_assert_eq!(enforced.would, enforced.reason);
    }

    #[test]
    fn the_order_of_policies_and_endpoints_does_not_matter((world, question) in generate::case()) {
        let mut reversed = world.clone();
        reversed.model.policies.reverse();
        reversed.model.endpoints.reverse();
        prop_assert_eq!(world.answer(&question), reversed.answer(&question));
    }

    #[test]
    fn time_only_takes_away((world, question) in generate::case()) {
        let mut later = question.clone();
        later.now += 1;
        prop_assert!(lets_pass(&world, &question) || !lets_pass(&world, &later));
    }

    #[test]
    fn a_quarantined_end_reaches_nobody((world, mut question) in generate::case()) {
        let Some(index) = question.local else { return Ok(()) };
        question.quarantined.push(world.model.workloads[index].identity.clone());
        let answer = world.answer(&question);
        prop_assert_eq!((answer.verdict, answer.reason), (Verdict::Deny, Reason::Quarantined));
    }
}

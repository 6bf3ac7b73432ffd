//! The answer in one sentence, and what can be done about it.

use zt_common::{
    codes::{Protocol, Reason},
    identity::Number,
};

use super::{
    decide::{Answer, Decision, Question},
    ends::End,
    names::Words,
    said,
};

/// The first line: `DENIED: no rule allows chat → postgres 5432/tcp (default
/// deny)`.
#[must_use]
pub fn sentence(question: &Question, answer: &Answer, words: &Words) -> String {
    let flow = flow(question, answer, words);
    if answer.exempt {
        return format!(
            "ALLOWED: {flow} stays within one workload and its own network namespace, where nothing is decided"
        );
    }
    let Some(decision) = answer.settling() else {
        return format!(
            "NOT DECIDED HERE: neither end of {flow} is a workload of this node, so nothing here stops it"
        );
    };
    let mut why = why(decision, &flow, words);
    let is_allow = decision.judgement.reason.is_allow();
    let others: Vec<String> = (answer.behind.iter())
        .filter(|one| one.quarantined || one.is_silent() || is_allow && !one.is_allowed())
        .map(|one| one.text(words))
        .collect();
    if !others.is_empty() {
        why += &format!("; it may be led to {}", others.join(", "));
    }
    if !answer.passes() {
        format!("DENIED: {why}")
    } else if decision.judgement.reason.is_allow() {
        format!("ALLOWED: {why}")
    } else {
        format!("ALLOWED, in audit mode only: enforced it would be denied, {why}")
    }
}

/// `chat → postgres 5432/tcp`
#[must_use]
pub fn flow(question: &Question, answer: &Answer, words: &Words) -> String {
    let ports = said::ports(&(question.port..=question.port), question.protocol as u8);
    format!(
        "{} → {} {ports}",
        end(&question.from, answer.source, words),
        end(&question.to, answer.destination, words)
    )
}

fn end(end: &End, number: u32, words: &Words) -> String {
    match end {
        End::Address(ip) => format!("{} ({ip})", words.identity(number)),
        _ => words.identity(number),
    }
}

fn why(decision: &Decision, flow: &str, words: &Words) -> String {
    let judgement = &decision.judgement;
    let rule = words
        .rule(judgement.rule)
        .unwrap_or_else(|| "a rule without a name".into());
    match judgement.reason {
        Reason::AllowedByRule => format!("{rule} allows {flow}"),
        Reason::LiveGrant => format!("{rule} allows {flow} until its deadline"),
        Reason::HostAllowed => {
            format!("{flow}: this node's own processes may reach its workloads (hostMayReach)")
        }
        Reason::NoPolicy => format!("no rule allows {flow} (default deny)"),
        Reason::DeniedByRule => format!("{rule} denies {flow}"),
        Reason::Unenrolled => format!(
            "{flow}: the {} end is a cgroup below the managed root that nobody enrolled",
            decision.direction.name()
        ),
        Reason::Quarantined => {
            let who = match decision.place.0 {
                super::place::Place::Trust(number) => words.identity(number),
                _ => "one of the ends".into(),
            };
            format!("{who} is quarantined, so {flow} is cut in every mode")
        }
        Reason::GrantExpired => {
            format!("{rule} allowed {flow} until its deadline, which has passed")
        }
        Reason::UnknownPeer => format!(
            "{flow}: nobody owns the other end's address, and no rule can allow whom nobody knows"
        ),
        Reason::Conflict => format!("{flow}: two workloads claim the other end's address"),
        Reason::NoRoom => format!(
            "{flow}: the maps have no room for all that is denied to the {} end, so it may do nothing",
            decision.direction.name()
        ),
        Reason::NotReady => "the programs run but no policies were ever applied".to_owned(),
        Reason::Spoofed => format!("{flow}: the source address is not the sender's"),
        other => format!("{flow}: {}", other.name()),
    }
}

/// What to do next, one step per line.
#[must_use]
pub fn next_steps(question: &Question, answer: &Answer, full: &Words) -> Vec<String> {
    if answer.exempt {
        return Vec::new();
    }
    let Some(decision) = answer.settling() else {
        return vec!["ask on the node where one of the two runs".into()];
    };
    let rule = full.rule(decision.judgement.rule).unwrap_or_default();
    match decision.judgement.reason {
        Reason::NoPolicy if !answer.behind.is_empty() => {
            // Who is left to its own node needs no rule, if others are there.
            let all_are = answer.behind.iter().all(|one| one.is_governed);
            let silent = answer.behind.iter().filter(|one| one.is_silent());
            silent
                .filter(|one| all_are || !one.is_governed)
                .flat_map(|one| allow(question, answer.source, (one.party, one.port), full))
                .collect()
        }
        Reason::NoPolicy => {
            let to = (answer.destination, question.port);
            allow(question, answer.source, to, full)
        }
        Reason::DeniedByRule => vec![format!(
            "a deny beats every allow: change or remove {rule}"
        )],
        Reason::GrantExpired => vec![format!("give {rule} a later `expires`")],
        Reason::Quarantined => vec![match decision.place.0 {
            super::place::Place::Trust(number) => {
                let behind = answer.behind.iter().find(|one| one.quarantined);
                let own = decision.local.identity == number;
                let number = behind.filter(|_| !own).map_or(number, |one| one.party);
                format!(
                    "zt-agent quarantine list; zt-agent quarantine remove {}",
                    full.identity(number)
                )
            }
            _ => "zt-agent quarantine list".into(),
        }],
        Reason::Unenrolled => {
            vec!["enrol its cgroup in the identity file, or start it with zt-agent exec".into()]
        }
        Reason::UnknownPeer => vec![
            "declare who is at that address: a workload's `addresses`, or `endpoints` in the identity file".into(),
        ],
        Reason::Conflict => {
            vec!["leave the address to one of the two, or give both `ports` in the identity file".into()]
        }
        Reason::NoRoom => vec![
            "zt-agent status says which map is full, and which of `limits` to raise".into(),
        ],
        Reason::NotReady => vec!["start the agent, or look into its log: zt-agent run".into()],
        _ => Vec::new(),
    }
}

/// The rule that would allow it.
fn allow(
    question: &Question,
    source: Number,
    (destination, port): (Number, u16),
    full: &Words,
) -> Vec<String> {
    let (Some(from), Some(to)) = (
        selector(&question.from, &full.identity(source)),
        selector(&question.to, &full.identity(destination)),
    ) else {
        return vec!["no rule can name one of these ends".into()];
    };
    let mut rule = vec![
        "if it should be allowed, add to the rules of a policy:".to_owned(),
        format!("    - from: {{{from}}}"),
        "      to:".to_owned(),
        format!("        - {to}"),
    ];
    match question.protocol {
        Protocol::Tcp => rule.push(format!("          ports: [{port}]")),
        Protocol::Udp => {
            rule.push(format!("          ports: [{port}]"));
            rule.push("          protocol: UDP".into());
        }
        Protocol::Icmp => rule.push("          protocol: ICMP".into()),
    }
    rule
}

fn selector(end: &End, name: &str) -> Option<String> {
    if name.starts_with("spiffe://") {
        return Some(format!("spiffe: \"{name}\""));
    }
    match (end, name) {
        (_, "host" | "nodes" | "apiserver" | "masqueraded") => Some(format!("reserved: {name}")),
        (End::Address(ip), _) if name == "world" || name.starts_with("cidr:") => {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            Some(format!("cidr: {ip}/{bits}"))
        }
        (_, "world") => Some("reserved: world".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::samples::built,
        explain::decide::tests::{ask, node, question},
    };

    fn told(quarantined: &[&str], from: &str, to: &str, port: u16) -> String {
        let built = built(&node());
        let question = question(from, to, port);
        let answer = ask(&built, quarantined, &question);
        sentence(&question, &answer, &Words::new(&built.numbers, false))
    }

    #[test]
    fn the_first_sentence_says_it_all() {
        for (from, to, port, wanted) in [
            ("a", "b", 80, "ALLOWED: p/rule-1 allows a → b 80/tcp"),
            (
                "a",
                "b",
                81,
                "DENIED: no rule allows a → b 81/tcp (default deny)",
            ),
            (
                "a",
                "10.9.0.9",
                22,
                "DENIED: p/rule-3 denies a → far (10.9.0.9) 22/tcp",
            ),
            (
                "c",
                "world",
                80,
                "ALLOWED, in audit mode only: enforced it would be denied, no rule allows c → world 80/tcp (default deny)",
            ),
            (
                "host",
                "b",
                80,
                "ALLOWED: host → b 80/tcp: this node's own processes may reach its workloads (hostMayReach)",
            ),
            (
                "far",
                "world",
                80,
                "NOT DECIDED HERE: neither end of far → world 80/tcp is a workload of this node, so nothing here stops it",
            ),
        ] {
            assert_eq!(told(&[], from, to, port), wanted);
        }
        assert_eq!(
            told(&["b"], "a", "b", 80),
            "DENIED: b is quarantined, so a → b 80/tcp is cut in every mode"
        );
    }

    #[test]
    fn the_rule_that_would_allow_it_is_given() {
        let built = built(&node());
        let question = question("a", "8.8.8.8", 443);
        let answer = ask(&built, &[], &question);
        let steps = next_steps(&question, &answer, &Words::new(&built.numbers, true));
        assert_eq!(
            steps,
            [
                "if it should be allowed, add to the rules of a policy:",
                "    - from: {spiffe: \"spiffe://td/a\"}",
                "      to:",
                "        - cidr: 8.8.8.8/32",
                "          ports: [443]",
            ]
        );
    }
}

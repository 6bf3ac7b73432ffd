//! `zt-agent policy explain`

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use zt_common::{
    codes::Protocol,
    identity::{LIMIT, Number},
};

use super::files;
use crate::{
    cli::{
        Global,
        output::{self, Output, Paint},
        settings,
    },
    compile::Tables,
    document::Config,
    explain::{
        World, changes,
        decide::{self, Answer, Decision, Question},
        ends::{End, EndError},
        names::Words,
        sentence, wanted,
    },
    kernel::{counters::Counters, pins::Pins, trust::TrustMap, view::View},
    source::{accepted::Accepted, node, policies},
};

#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Who opens the flow: SPIFFE ID or its ending, IP address, or reserved identity (world, host, …)
    #[arg(long, value_name = "END")]
    pub from: End,
    /// To whom
    #[arg(long, value_name = "END")]
    pub to: End,
    /// Destination port; not for ICMP
    #[arg(long, required_unless_present = "protocol", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Transport protocol
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    pub protocol: Transport,
    /// Whole SPIFFE IDs
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Tcp,
    Udp,
    Icmp,
}

impl ExplainArgs {
    fn question(&self) -> anyhow::Result<Question> {
        let protocol = match self.protocol {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Icmp => Protocol::Icmp,
        };
        let port = match (protocol, self.port) {
            (Protocol::Icmp, _) => 0,
            (_, port) => port.context("--port is missing: name the destination port")?,
        };
        Ok(Question {
            from: self.from.clone(),
            to: self.to.clone(),
            protocol,
            port,
        })
    }
}

pub fn run(global: &Global, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let question = args.question()?;
    let config = settings::load(global)?;
    settings::require_root()?;
    let pins = settings::pins(&config);
    let view = View::read(&pins)?;
    let quarantined = TrustMap::open(&pins)?.quarantined(numbers(&view))?;
    let world = World {
        tables: &view.tables,
        numbers: &view.numbers,
        quarantined: &quarantined,
        generation: view.generation,
        control: &view.control,
        now: node::boot_time()?,
    };
    let answer = decide::answer(&question, &world).map_err(|error| pending(error, &config))?;
    let report = Report {
        words: Words::new(&view.numbers, args.full || args.output.is_json()),
        full: Words::new(&view.numbers, true),
        hits: hits(&pins, &answer)?,
        wanted: wanted_by_files(&view, &config).map_err(|error| format!("{error:#}")),
        maps: pins.directory().join("maps"),
        wall: Timestamp::now(),
        question,
        answer,
        world,
    };
    if args.output.is_json() {
        output::json(&report.as_json())?;
    } else {
        output::text(&report.render(Paint::of_stdout()))?;
    }
    Ok(ExitCode::from(u8::from(!report.answer.passes())))
}

/// An identity may be unknown because its cgroup is not there yet.
fn pending(error: EndError, config: &Config) -> anyhow::Error {
    let EndError::Unknown { id, .. } = &error else {
        return error.into();
    };
    let file = settings::identities(config).ok();
    let workloads = file.iter().flat_map(|(file, _)| &file.workloads);
    let has = |text: &str| {
        text.strip_suffix(id)
            .is_some_and(|r| r.is_empty() || r.ends_with('/'))
    };
    match workloads.map(|w| w.spiffe.as_str()).find(|text| has(text)) {
        Some(found) => anyhow::anyhow!(
            "{found} is pending: it is in {}, and the kernel does not know it yet; its cgroup is not there, or the agent has not applied it (zt-agent status)",
            config.identities.display()
        ),
        None => error.into(),
    }
}

fn numbers(view: &View) -> impl Iterator<Item = Number> {
    let reserved = 0..zt_common::identity::FIRST_SPIFFE;
    let named = view.numbers.names().map(|(_, number)| number);
    reserved.chain(named).filter(|number| *number < LIMIT)
}

fn hits(pins: &Pins, answer: &Answer) -> anyhow::Result<BTreeMap<u32, u64>> {
    let counters = Counters::open(pins)?;
    let rules = answer.decisions.iter().map(|d| d.judgement.rule);
    rules
        .filter(|rule| *rule != 0)
        .map(|rule| Ok((rule, counters.hits(rule)?)))
        .collect()
}

fn wanted_by_files(view: &View, config: &Config) -> anyhow::Result<Tables> {
    let mut policies = policies::load(&config.policies)?.policies;
    // The cluster's, as the agent accepted them last.
    let accepted = Accepted::below(
        &config.state_directory,
        false,
        config.identity.has_policies(),
    );
    let cluster = accepted.cluster()?.unwrap_or_default();
    policies.extend(cluster.policies().cloned());
    let model = files::model(view, config, policies)?;
    let (compiled, _) = wanted::compile(&model, &view.numbers)?;
    Ok(compiled.tables)
}

struct Report<'a> {
    question: Question,
    answer: Answer,
    world: World<'a>,
    words: Words,
    full: Words,
    hits: BTreeMap<u32, u64>,
    wanted: Result<Tables, String>,
    maps: PathBuf,
    wall: Timestamp,
}

/// Whether the policy files want what the kernel has.
enum Sync {
    Same,
    Differs(String),
    Unknown(String),
}

impl Report<'_> {
    fn render(&self, paint: Paint) -> String {
        let sentence = sentence::sentence(&self.question, &self.answer, &self.words);
        let sentence = if !self.answer.passes() {
            paint.bad(&sentence)
        } else if sentence.starts_with("ALLOWED:") {
            paint.good(&sentence)
        } else {
            paint.doubtful(&sentence)
        };
        let mut out = sentence + "\n";
        if self.world.generation == 0 {
            out += "no generation was ever applied: nothing below the managed root passes\n";
        }
        for decision in &self.answer.decisions {
            out.push('\n');
            out += &output::table(&[], self.rows(decision));
        }
        if self.answer.asks_socket {
            out += "\none of the addresses is shared: there the kernel also asks the socket behind it, which may give another answer\n";
        }
        let steps = self.steps();
        if !steps.is_empty() {
            out += &format!("\n{}\n", steps.join("\n"));
        }
        out
    }

    fn steps(&self) -> Vec<String> {
        let differs = |decision| matches!(self.sync(decision), Sync::Differs(_));
        if self.answer.settling().is_some_and(differs) {
            // What to write into the files is beside the point.
            return vec!["zt-agent status: does an agent run? It puts in force what the files want and repairs what was altered".to_owned()];
        }
        sentence::next_steps(&self.question, &self.answer, &self.full)
    }

    fn rows(&self, decision: &Decision) -> Vec<Vec<String>> {
        let judgement = &decision.judgement;
        let mut rows = vec![
            ("end", self.end(decision)),
            ("verdict", judgement.verdict.name().to_owned()),
            ("reason", judgement.reason.name().to_owned()),
        ];
        if let Some(rule) = self.words.rule(judgement.rule) {
            let hits = self.hits.get(&judgement.rule).copied().unwrap_or_default();
            rows.push(("rule", format!("{rule} (decided {hits} times)")));
        }
        let behind = self.answer.behind.iter();
        rows.extend(behind.map(|one| ("behind it", one.text(&self.words))));
        if let Some((at, left)) = self.deadline(decision) {
            rows.push(("deadline", format!("{at} ({left} left)")));
        }
        if judgement.would.is_allow() != judgement.reason.is_allow() {
            let rule = self.words.rule(judgement.would_rule).unwrap_or_default();
            let would = format!("{} {rule}", judgement.would.name());
            rows.push(("with audit policies", would.trim_end().to_owned()));
        }
        rows.push(("generation", self.world.generation.to_string()));
        rows.push(("policy files", self.sync_text(decision)));
        rows.push(("row", self.place(decision)));
        (rows.into_iter())
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect()
    }

    fn end(&self, decision: &Decision) -> String {
        let mode = match (decision.local.enforce, decision.enforce) {
            (true, _) => "enforce mode",
            (false, true) => "audit mode, and the other end enforces",
            (false, false) => "audit mode",
        };
        format!(
            "{} of {}, {mode}",
            decision.direction.name(),
            self.words.identity(decision.local.identity)
        )
    }

    fn place(&self, decision: &Decision) -> String {
        let (place, there) = &decision.place;
        let command = place.command(&self.maps);
        if *there {
            command
        } else {
            format!("none; {command}")
        }
    }

    /// Wall-clock end of the grant, and what is left of it.
    fn deadline(&self, decision: &Decision) -> Option<(Timestamp, String)> {
        let deadline = decision.judgement.deadline;
        let left = i64::try_from(deadline.checked_sub(self.world.now)?).ok()?;
        let left = SignedDuration::from_nanos(left);
        let at = self.wall.checked_add(left).ok()?;
        let at = at.round(jiff::Unit::Second).unwrap_or(at);
        Some((
            at,
            format!("{:#}", SignedDuration::from_secs(left.as_secs())),
        ))
    }

    fn sync(&self, decision: &Decision) -> Sync {
        match &self.wanted {
            Err(why) => Sync::Unknown(why.clone()),
            Ok(wanted) if decision.in_sync(&self.world, wanted) => Sync::Same,
            Ok(wanted) => {
                let side = decision.wanted(wanted).now;
                let rule = self.full.rule(side.rule);
                Sync::Differs(match rule {
                    Some(rule) => format!("{} ({rule})", changes::action(&side)),
                    None => "default deny".to_owned(),
                })
            }
        }
    }

    fn sync_text(&self, decision: &Decision) -> String {
        match self.sync(decision) {
            Sync::Same => "in sync".to_owned(),
            Sync::Unknown(why) => {
                let first = why.lines().next().unwrap_or_default();
                format!("not compared: {first}; see zt-agent policy check")
            }
            Sync::Differs(wants) => format!(
                "DIFFERS: the files want {wants}, the kernel has another row: somebody altered it, or the agent has not applied the last change; see zt-agent status"
            ),
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "allowed": self.answer.passes(),
            "sentence": sentence::sentence(&self.question, &self.answer, &self.words),
            "source": self.full.identity(self.answer.source),
            "destination": self.full.identity(self.answer.destination),
            "port": self.question.port,
            "protocol": self.question.protocol.name(),
            "generation": self.world.generation,
            "asks_socket": self.answer.asks_socket,
            "behind": self.answer.behind.iter().map(|one| one.text(&self.full)).collect::<Vec<_>>(),
            "decisions": self.answer.decisions.iter().map(|d| self.decision_json(d)).collect::<Vec<_>>(),
            "next_steps": self.steps(),
        })
    }

    fn decision_json(&self, decision: &Decision) -> Value {
        let judgement = &decision.judgement;
        let (in_sync, wants) = match self.sync(decision) {
            Sync::Same => (Some(true), None),
            Sync::Differs(wants) => (Some(false), Some(wants)),
            Sync::Unknown(_) => (None, None),
        };
        json!({
            "direction": decision.direction.name(),
            "identity": self.full.identity(decision.local.identity),
            "peer": self.full.identity(decision.peer.identity),
            "enforce": decision.enforce,
            "verdict": judgement.verdict.name(),
            "reason": judgement.reason.name(),
            "rule": self.full.rule(judgement.rule),
            "rule_hits": self.hits.get(&judgement.rule),
            "deadline": self.deadline(decision).map(|(at, _)| at.to_string()),
            "would_reason": judgement.would.name(),
            "in_sync": in_sync,
            "files_want": wants,
            "map": decision.place.0.map(),
            "row_present": decision.place.1,
            "look_up": decision.place.0.command(&self.maps),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::samples::{NOW, allow, built, endpoint, id, model, policy, workload},
        model::NodeModel,
    };
    use zt_common::state::Control;

    fn node() -> NodeModel {
        let mut node = model();
        node.workloads = vec![workload("web", 10), workload("db", 11)];
        node.endpoints = vec![
            endpoint("10.0.0.1", "web", 10),
            endpoint("10.0.0.2", "db", 11),
        ];
        let mut grant = allow(1, "web", "db").ports(&[(5432, 5432)]);
        grant.expires = Some(NOW + 3_600_000_000_000);
        node.policies = vec![policy("core", vec![grant])];
        node
    }

    fn with_report<T>(port: u16, wanted: Result<Tables, String>, ask: impl Fn(&Report) -> T) -> T {
        let built = built(&node());
        let (quarantined, control) = (std::collections::BTreeSet::new(), Control::default());
        let world = World {
            tables: built.tables(),
            numbers: &built.numbers,
            quarantined: &quarantined,
            generation: 7,
            control: &control,
            now: NOW,
        };
        let question = Question {
            from: End::Identity(id("web")),
            to: End::Identity(id("db")),
            protocol: Protocol::Tcp,
            port,
        };
        let answer = decide::answer(&question, &world).unwrap();
        ask(&Report {
            words: Words::new(&built.numbers, false),
            full: Words::new(&built.numbers, true),
            hits: BTreeMap::from([(1, 42)]),
            wanted,
            maps: "/maps".into(),
            wall: "2026-11-21T12:00:00Z".parse().unwrap(),
            question,
            answer,
            world,
        })
    }

    #[test]
    fn a_grant_shows_its_deadline_and_its_hits() {
        let wanted = built(&node()).compiled.tables;
        let text = with_report(5432, Ok(wanted), |report| report.render(Paint(false)));
        let end = |end: &str| {
            format!(
                " end           {end}, enforce mode\n \
                  verdict       ALLOW\n \
                  reason        live-grant\n \
                  rule          core/rule-1 (decided 42 times)\n \
                  deadline      2026-11-21T13:00:00Z (1h left)\n \
                  generation    7\n \
                  policy files  in sync\n \
                  row           bpftool map lookup pinned /maps/zt_policy_v1 key hex 01 01 00 00 00 01 00 00 38 15 06 00\n"
            )
        };
        let (egress, ingress) = (end("egress of web"), end("ingress of db"));
        assert_eq!(
            text,
            format!(
                "ALLOWED: core/rule-1 allows web → db 5432/tcp until its deadline\n\n{egress}\n{ingress}"
            )
        );
    }

    #[test]
    fn a_pending_identity_is_not_called_unknown() {
        let directory = tempfile::TempDir::new().unwrap();
        let config = Config {
            identities: directory.path().join("i.yaml"),
            ..Config::default()
        };
        let text = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n  - {spiffe: \"spiffe://td/ns/redis\", cgroup: zt/redis}\n";
        std::fs::write(&config.identities, text).unwrap();
        let told = |id: &str| {
            let id = id.to_owned();
            pending(
                EndError::Unknown {
                    id,
                    nearest: vec![],
                },
                &config,
            )
            .to_string()
        };
        assert!(told("redis").starts_with("spiffe://td/ns/redis is pending"));
        assert!(told("spiffe://td/ns/redis").contains("is pending"));
        assert!(told("edis").starts_with("edis is unknown"));
    }

    #[test]
    fn a_denial_ends_with_the_rule_that_would_allow_it() {
        let text = with_report(80, Err("p.yaml: broken\nmore".into()), |report| {
            report.render(Paint(false))
        });
        assert!(
            text.starts_with("DENIED: no rule allows web → db 80/tcp (default deny)\n"),
            "{text}"
        );
        assert!(
            text.contains(" policy files  not compared: p.yaml: broken; see"),
            "{text}"
        );
        assert!(
            text.contains(" row           none; bpftool map lookup"),
            "{text}"
        );
        assert!(text.ends_with("          ports: [80]\n"), "{text}");
    }

    #[test]
    fn a_row_that_the_files_do_not_want_is_told() {
        let text = with_report(5432, Ok(Tables::default()), |report| {
            report.render(Paint(false))
        });
        assert!(
            text.contains("DIFFERS: the files want default deny, the kernel has another row"),
            "{text}"
        );
        let json = with_report(5432, Ok(Tables::default()), |report| report.as_json());
        assert_eq!(json["decisions"][0]["in_sync"], false);
        assert_eq!(json["allowed"], true);
    }
}

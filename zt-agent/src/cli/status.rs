//! `zt-agent status`

use std::{collections::HashMap, process::ExitCode};

use aya::{
    maps::MapData,
    programs::{ProgramInfo, loaded_programs},
};
use serde::Serialize;
use serde_json::{Value, json};
use zt_common::state::{Control, Totals};

use super::{
    Global, agent,
    output::{self, Output, Paint},
    settings,
};
use crate::{
    document::Config,
    kernel::{
        cgroup::{self, Root},
        counters::{self, Counters, Fill},
        frames::{self, SideStatus},
        links::{self, PointStatus},
        pins::Pins,
        ring, tc, view,
    },
    model::Mode,
    netlink::links::list as links_of_node,
};

#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub output: Output,
}

/// Maps whose fill is shown.
const MAPS: [&str; 10] = [
    "zt_policy_v1",
    "zt_range_v1",
    "zt_address_v1",
    "zt_cidr_v1",
    "zt_workload_v1",
    "zt_interface_v1",
    "zt_flow_v1",
    "zt_identity_v1",
    "zt_rule_v1",
    "zt_count_v1",
];

/// From here on a map is too full, percent.
const FULL: u64 = 90;

pub fn run(global: &Global, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    settings::require_root()?;
    let status = Status::look(&config)?;
    if args.output.is_json() {
        output::json(&status.as_json())?;
    } else {
        output::text(&status.render(Paint::of_stdout()))?;
    }
    Ok(ExitCode::from(u8::from(!status.problems().is_empty())))
}

/// Everything that is shown.
#[derive(Debug)]
struct Status {
    pid: Option<u32>,
    /// What the agent says of itself, or why it does not.
    agent: Result<Value, String>,
    mode: Mode,
    root: String,
    /// `None`: nothing is pinned.
    kernel: Option<Kernel>,
    audit_file: String,
}

#[derive(Debug)]
struct Kernel {
    generation: u32,
    epoch: u64,
    /// Or why it is not known.
    points: Result<Vec<Point>, String>,
    /// Maps whose pins do not lead to what the programs read.
    astray: Vec<&'static str>,
    interfaces: Vec<InterfaceState>,
    maps: Vec<Fill>,
    totals: Totals,
    /// Events taken out of the ring.
    consumed: u64,
}

#[derive(Debug)]
struct Point {
    status: PointStatus,
    /// The name of a program behind our link that is not ours.
    impostor: Option<String>,
    /// Names of the strangers.
    strangers: Vec<String>,
}

impl Status {
    fn look(config: &Config) -> anyhow::Result<Self> {
        let pid = agent::holder(&config.runtime_directory)?;
        let answer = match pid {
            Some(_) => agent::status(&config.runtime_directory).map_err(|e| format!("{e:#}")),
            None => Err("not running".to_owned()),
        };
        let pins = settings::pins(config);
        Ok(Self {
            pid,
            agent: answer,
            mode: config.mode,
            root: config.cgroup_root.display().to_string(),
            kernel: pins
                .exist()
                .then(|| Kernel::look(config, &pins))
                .transpose()?,
            audit_file: config.audit.file.display().to_string(),
        })
    }

    /// What is wrong, one sentence each.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.pid.is_none() {
            problems.push("no agent is running: changes are not applied and decisions not recorded; start it: zt-agent run".to_owned());
        } else if let Err(why) = &self.agent {
            problems.push(format!("the agent runs and does not answer: {why}"));
        }
        match &self.kernel {
            None => problems.push("nothing is loaded: nothing is enforced on this node".to_owned()),
            Some(kernel) => kernel.problems(&mut problems),
        }
        let reasons = self.agent.as_ref().ok().and_then(|a| find(a, "not_ready"));
        for reason in reasons.and_then(Value::as_array).into_iter().flatten() {
            let reason = reason.as_str().unwrap_or("no reason");
            problems.push(format!("the agent is not ready: {reason}"));
        }
        let last = self.agent.as_ref().ok().and_then(|a| a.get("last_error"));
        if let Some(error) = last.and_then(Value::as_str) {
            problems.push(format!("the last change is not in force: {error}"));
        }
        problems.extend(self.refused());
        problems.extend(self.exposed());
        if let Ok(answer) = &self.agent
            && find(answer, "healthy") == Some(&Value::Bool(false))
        {
            problems.push("the audit trail is not healthy; see below".to_owned());
        }
        problems
    }
}

impl Status {
    /// Policies of the cluster whose latest version is refused, one sentence
    /// each.
    fn refused(&self) -> Vec<String> {
        let answer = self.agent.as_ref().ok();
        let refused = answer.and_then(|answer| answer["cluster"]["refused"].as_array());
        let text = |one: &Value, field: &str| one[field].as_str().unwrap_or("?").to_owned();
        let sentence = |one: &Value| {
            format!(
                "{} is refused, and what was accepted of it before stays in force: {}: {}",
                text(one, "resource"),
                text(one, "field"),
                text(one, "message")
            )
        };
        refused.into_iter().flatten().map(sentence).collect()
    }

    /// Whose first packets nobody decided.
    fn exposed(&self) -> Option<String> {
        let answer = self.agent.as_ref().ok()?;
        let pods = answer["cluster"]["exposed"].as_array()?;
        let first = pods.first()?.as_str()?;
        Some(format!(
            "{} pods are enforced on this node, which is not, and were made without the CNI plugin ({first} is one): what they sent before they were found was not decided; install it (deploy/cni, or zt-agent cni install) and make them anew",
            pods.len()
        ))
    }

    /// Workloads whose frames are not decided, and why; one sentence each.
    fn uncovered(&self) -> Vec<String> {
        let Ok(answer) = &self.agent else {
            return vec!["the agent does not answer, so nobody knows".to_owned()];
        };
        let list = answer.get("uncovered").and_then(Value::as_array);
        let text = |one: &Value, field: &str| one[field].as_str().unwrap_or("?").to_owned();
        list.into_iter()
            .flatten()
            .map(|one| format!("{}: {}", text(one, "spiffe_id"), text(one, "why")))
            .collect()
    }

    fn coverage(&self) -> String {
        match &self.uncovered()[..] {
            [] => "complete: every workload's frames are decided at its interface".to_owned(),
            [only] => format!("partial: {only}"),
            [first, rest @ ..] => {
                format!("partial: {first}; and {} more, see below", rest.len())
            }
        }
    }
}

/// An interface with programs of ours.
#[derive(Debug, Serialize)]
struct InterfaceState {
    index: u32,
    name: String,
    sides: Vec<SideState>,
}

#[derive(Debug, Serialize)]
struct SideState {
    hook: &'static str,
    program_id: Option<u32>,
    /// The name of a program that is behind our link and is not ours.
    impostor: Option<String>,
    /// Of ours, that should be.
    #[serde(skip)]
    program: &'static str,
    /// What decides before ours.
    before: Vec<String>,
}

impl InterfaceState {
    fn look(pins: &Pins) -> anyhow::Result<Vec<Self>> {
        let covered = frames::covered(pins);
        if covered.is_empty() {
            return Ok(Vec::new());
        }
        let mechanism = tc::probe()?;
        let links = links_of_node()?;
        let control = map_id(pins, "zt_control_v1");
        // They are mostly the same at every interface.
        let mut known = HashMap::new();
        let mut side = |status: SideStatus| {
            let impostor = status.program_id.and_then(|id| {
                let named = known
                    .entry((id, status.point.program))
                    .or_insert_with(|| impostor(id, status.point.program, control));
                named.clone()
            });
            SideState {
                hook: status.point.hook,
                program_id: status.program_id,
                impostor,
                program: status.point.program,
                before: status.before,
            }
        };
        let look = |index: &u32| {
            let name = links.iter().find(|link| link.index == *index);
            let sides = frames::status(mechanism, pins, *index).unwrap_or_default();
            Self {
                index: *index,
                name: name.map_or_else(|| "gone".to_owned(), |link| link.name.clone()),
                sides: sides.into_iter().map(&mut side).collect(),
            }
        };
        Ok(covered.iter().map(look).collect())
    }

    fn problems(&self, problems: &mut Vec<String>) {
        for side in &self.sides {
            let (name, hook) = (&self.name, side.hook);
            if side.program_id.is_none() {
                problems.push(format!(
                    "{name}, {hook}: our program is not attached; the agent attaches it again"
                ));
            }
            if let Some(impostor) = &side.impostor {
                problems.push(format!(
                    "{name}, {hook}: the program behind our link is {impostor}, not {}; an agent that runs puts ours in its place",
                    side.program
                ));
            }
            for before in &side.before {
                problems.push(format!(
                    "{name}, {hook}: {before} is not ours and decides before our program; take it off, or have it come after"
                ));
            }
        }
    }

    fn rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.sides.iter().map(|side| {
            vec![
                self.name.clone(),
                self.index.to_string(),
                side.hook.to_owned(),
                side.program_id
                    .map_or_else(|| "MISSING".to_owned(), |id| id.to_string()),
                side.before.join(" "),
            ]
        })
    }
}

impl Kernel {
    fn look(config: &Config, pins: &Pins) -> anyhow::Result<Self> {
        let control = view::control(pins)?;
        let (generation, _) = Control::unpack(control.active);
        // In this order: an event that comes in between is "in the ring".
        let consumed = ring::consumed(pins)?;
        let totals = Counters::open(pins)?.totals()?;
        let fill = |name| counters::fill(pins, name);
        let points = points(config, pins).map_err(|error| format!("{error:#}"));
        Ok(Self {
            generation,
            epoch: control.epoch,
            astray: astray(points.as_deref().unwrap_or_default(), pins),
            points,
            interfaces: InterfaceState::look(pins)?,
            maps: MAPS.into_iter().map(fill).collect::<Result<_, _>>()?,
            totals,
            consumed,
        })
    }

    fn emitted(&self) -> u64 {
        self.totals.decisions.saturating_sub(self.totals.lost_ring)
    }

    fn problems(&self, problems: &mut Vec<String>) {
        if self.generation == 0 {
            problems.push(
                "no generation was ever applied: nothing below the managed root passes".to_owned(),
            );
        }
        match &self.points {
            Err(why) => problems.push(format!("the attach points cannot be looked at: {why}")),
            Ok(points) => points.iter().for_each(|point| point.problems(problems)),
        }
        for name in &self.astray {
            problems.push(format!(
                "{name}: what is pinned is not the map that the programs read; an agent that runs puts it right, else run `zt-agent cleanup` and start again"
            ));
        }
        (self.interfaces.iter()).for_each(|interface| interface.problems(problems));
        if self.consumed > self.emitted() {
            problems.push(format!(
                "the totals do not add up: {} events were consumed and {} emitted; somebody altered the maps",
                self.consumed,
                self.emitted()
            ));
        }
        for map in self.maps.iter().filter(|map| percent(map) >= FULL) {
            // These two fill up and make room by themselves.
            if !matches!(map.name, "zt_flow_v1" | "zt_count_v1") {
                problems.push(format!(
                    "{} is {} % full: raise its limit in the configuration",
                    map.name,
                    percent(map)
                ));
            }
        }
    }
}

/// What every decision of ours at a packet reads.
const READ: [&str; 7] = [
    "zt_control_v1",
    "zt_workload_v1",
    "zt_address_v1",
    "zt_cidr_v1",
    "zt_policy_v1",
    "zt_range_v1",
    "zt_trust_v1",
];

/// Those of [`READ`] whose pins lead to something that none of our programs
/// reads. Empty if none of them is attached.
fn astray(points: &[Point], pins: &Pins) -> Vec<&'static str> {
    let ids = points.iter().filter_map(|point| point.status.program_id);
    let infos = ids.filter_map(program);
    let read: Vec<u32> = infos
        .flat_map(|info| info.map_ids().ok().flatten().unwrap_or_default())
        .collect();
    let is_read = |name: &str| map_id(pins, name).is_some_and(|id| read.contains(&id));
    let names = READ.into_iter().filter(|_| !read.is_empty());
    names.filter(|name| !is_read(name)).collect()
}

/// `None`: what is pinned there is no map of this name.
fn map_id(pins: &Pins, name: &str) -> Option<u32> {
    let map = MapData::from_pin(pins.map(name)).and_then(|map| map.info());
    let info = map.ok().filter(|info| info.name_as_str() == Some(name));
    info.map(|info| info.id())
}

fn points(config: &Config, pins: &Pins) -> anyhow::Result<Vec<Point>> {
    let path = cgroup::mount()?.join(&config.cgroup_root);
    // Opening would make it, and looking must change nothing.
    anyhow::ensure!(
        path.is_dir(),
        "the managed root {} is missing",
        path.display()
    );
    let root = Root::open(&path, config.allow_root_cgroup)?;
    let statuses = links::status(&root, pins)?;
    let control = map_id(pins, "zt_control_v1");
    Ok((statuses.into_iter())
        .map(|status| Point {
            impostor: status
                .program_id
                .and_then(|id| impostor(id, status.point.program, control)),
            strangers: status.strangers.iter().map(|id| named(*id)).collect(),
            status,
        })
        .collect())
}

fn program(id: u32) -> Option<ProgramInfo> {
    let mut programs = loaded_programs().flatten();
    programs.find(|info| info.id() == id)
}

/// A program's name for people.
fn named(id: u32) -> String {
    let name = program(id).and_then(|info| info.name_as_str().map(str::to_owned));
    name.unwrap_or_else(|| "?".to_owned())
}

/// The name of a program where ours of the name `of` should be; none: it is.
fn impostor(id: u32, of: &str, control: Option<u32>) -> Option<String> {
    (!is_ours(id, of, control)).then(|| named(id))
}

/// Whether a program has the name of ours and reads our control element.
fn is_ours(id: u32, name: &str, control: Option<u32>) -> bool {
    program(id).is_some_and(|info| {
        let maps = info.map_ids().ok().flatten().unwrap_or_default();
        info.name_as_str() == Some(name) && control.is_some_and(|id| maps.contains(&id))
    })
}

impl Point {
    fn problems(&self, problems: &mut Vec<String>) {
        let hook = self.status.point.hook;
        if self.status.program_id.is_none() {
            problems.push(format!(
                "{hook}: our program is not attached; start the agent again to attach it"
            ));
        }
        if let Some(name) = &self.impostor {
            problems.push(format!(
                "{hook}: the program behind our link is {name}, not {}; start the agent again to put ours in its place",
                self.status.point.program
            ));
        }
        for stranger in self.strangers() {
            problems.push(format!(
                "{hook}: program {stranger} is not ours and runs on the same cgroup; it may undo a denial"
            ));
        }
    }

    /// `12 (name)`
    fn strangers(&self) -> Vec<String> {
        (self.status.strangers.iter())
            .zip(&self.strangers)
            .map(|(id, name)| format!("{id} ({name})"))
            .collect()
    }
}

fn percent(map: &Fill) -> u64 {
    let rows = u64::try_from(map.rows).unwrap_or(u64::MAX);
    rows.saturating_mul(100) / u64::from(map.limit.max(1))
}

/// `##........`
fn bar(map: &Fill) -> String {
    const CELLS: usize = 10;
    let filled = usize::try_from(percent(map).min(100).div_ceil(10)).unwrap_or(CELLS);
    format!("{}{}", "#".repeat(filled), ".".repeat(CELLS - filled))
}

/// The first field with this name, at any depth.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = value.as_object()?;
    let deeper = || fields.values().find_map(|value| find(value, name));
    fields.get(name).or_else(deeper)
}

/// `trail.lost.ring` → value, for everything that is no object or list.
fn flat(prefix: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flat(&name, value, rows);
            }
        }
        Value::Null => {}
        Value::Array(list) => {
            for (number, value) in (1..).zip(list) {
                flat(&format!("{prefix}.{number}"), value, rows);
            }
        }
        Value::String(text) => rows.push(vec![prefix.to_owned(), text.clone()]),
        other => rows.push(vec![prefix.to_owned(), other.to_string()]),
    }
}

impl Status {
    fn render(&self, paint: Paint) -> String {
        let mut out = self.heading(paint);
        for problem in self.problems() {
            out += &format!("{}: {problem}\n", paint.bad("problem"));
        }
        if let Some(kernel) = &self.kernel {
            out += &kernel.render(paint);
        }
        if let Ok(answer) = &self.agent {
            let mut rows = Vec::new();
            flat("", answer, &mut rows);
            out += &section(paint, "the agent says", &output::table(&[], rows));
        }
        out
    }

    fn heading(&self, paint: Paint) -> String {
        let agent = match self.pid {
            Some(pid) => paint.good(&format!("running, pid {pid}")),
            None => paint.bad("not running"),
        };
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::Audit => "audit",
        };
        let mut rows = vec![
            ("mode", mode.to_owned()),
            ("managed root", self.root.clone()),
            ("coverage", self.coverage()),
            ("audit trail", self.audit_file.clone()),
        ];
        if let Some(kernel) = &self.kernel {
            let generation = format!("{} (epoch {:016x})", kernel.generation, kernel.epoch);
            rows.insert(1, ("generation", generation));
        }
        let rows = rows
            .into_iter()
            .map(|(name, value)| vec![name.to_owned(), value]);
        format!("agent {agent}\n{}", output::table(&[], rows))
    }

    fn as_json(&self) -> Value {
        json!({
            "running": self.pid.is_some(),
            "pid": self.pid,
            "mode": match self.mode { Mode::Enforce => "enforce", Mode::Audit => "audit" },
            "managed_root": self.root,
            "coverage": if self.uncovered().is_empty() { "complete" } else { "partial" },
            "uncovered": self.uncovered(),
            "interfaces": self.kernel.as_ref().map(|k| &k.interfaces),
            "audit_file": self.audit_file,
            "problems": self.problems(),
            "agent": self.agent.as_ref().ok(),
            "kernel": self.kernel.as_ref().map(Kernel::as_json),
        })
    }
}

fn section(paint: Paint, title: &str, body: &str) -> String {
    format!("\n{}\n{body}", paint.strong(title))
}

impl Kernel {
    fn render(&self, paint: Paint) -> String {
        let mut out = String::new();
        if let Ok(points) = &self.points {
            let rows = points.iter().map(Point::row);
            let table = output::table(&["HOOK", "PROGRAM", "ID", "STATE", "STRANGERS"], rows);
            out += &section(paint, "attach points", &table);
        }
        if !self.interfaces.is_empty() {
            let rows = self.interfaces.iter().flat_map(InterfaceState::rows);
            let head = ["INTERFACE", "INDEX", "HOOK", "PROGRAM", "BEFORE OURS"];
            out += &section(paint, "interfaces", &output::table(&head, rows));
        }
        let rows = self.maps.iter().map(|map| {
            vec![
                map.name.to_owned(),
                bar(map),
                format!("{} of {}", map.rows, map.limit),
            ]
        });
        out += &section(paint, "maps", &output::table(&[], rows));
        out + &section(paint, "decisions", &output::table(&[], self.sums()))
    }

    /// The totals and how they add up.
    fn sums(&self) -> Vec<Vec<String>> {
        let Totals {
            decisions,
            lost_ring,
            uncounted,
            flow_full,
            flow_spilled,
        } = self.totals;
        let emitted = self.emitted();
        let ring = emitted.saturating_sub(self.consumed);
        let rows = [
            (
                "made",
                format!("{decisions} = {emitted} emitted + {lost_ring} lost, the ring was full"),
            ),
            (
                "emitted",
                format!(
                    "{emitted} = {} consumed + {ring} in the ring",
                    self.consumed
                ),
            ),
            ("uncounted by pair", uncounted.to_string()),
            ("flows not remembered", flow_full.to_string()),
            ("flows beyond a share", flow_spilled.to_string()),
        ];
        (rows.into_iter())
            .map(|(name, value)| vec![name.to_owned(), value])
            .collect()
    }

    fn as_json(&self) -> Value {
        let maps = self
            .maps
            .iter()
            .map(|map| json!({"name": map.name, "rows": map.rows, "limit": map.limit}));
        let points = self.points.as_ref().ok();
        json!({
            "generation": self.generation,
            "epoch": format!("{:016x}", self.epoch),
            "pins_astray": self.astray,
            "attach_points": points.map(|p| p.iter().map(Point::as_json).collect::<Vec<_>>()),
            "maps": maps.collect::<Vec<_>>(),
            "decisions": self.totals.decisions,
            "lost_ring": self.totals.lost_ring,
            "emitted": self.emitted(),
            "consumed": self.consumed,
            "uncounted": self.totals.uncounted,
            "flow_full": self.totals.flow_full,
            "flow_spilled": self.totals.flow_spilled,
        })
    }
}

impl Point {
    fn row(&self) -> Vec<String> {
        let status = &self.status;
        let id = status
            .program_id
            .map_or_else(|| "-".to_owned(), |id| id.to_string());
        let state = match (&self.impostor, status.program_id) {
            (Some(_), _) => "REPLACED",
            (None, Some(_)) => "attached",
            (None, None) => "MISSING",
        };
        vec![
            status.point.hook.to_owned(),
            status.point.program.to_owned(),
            id,
            state.to_owned(),
            self.strangers().join(" "),
        ]
    }

    fn as_json(&self) -> Value {
        json!({
            "hook": self.status.point.hook,
            "program": self.status.point.program,
            "program_id": self.status.program_id,
            "impostor": self.impostor,
            "strangers": self.status.strangers.iter().zip(&self.strangers)
                .map(|(id, name)| json!({"id": id, "name": name})).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        let point = |index: usize, program_id, strangers: &[u32]| Point {
            status: PointStatus {
                point: links::POINTS[index],
                program_id,
                strangers: strangers.to_vec(),
            },
            impostor: None,
            strangers: strangers.iter().map(|_| "lb".to_owned()).collect(),
        };
        Status {
            pid: Some(77),
            agent: Ok(json!({"trail": {"recorded": 90, "healthy": true}, "last_error": null})),
            mode: Mode::Enforce,
            root: "zt.slice".into(),
            kernel: Some(Kernel {
                generation: 3,
                epoch: 0xabc,
                interfaces: vec![InterfaceState {
                    index: 12,
                    name: "veth7".into(),
                    sides: vec![SideState {
                        hook: "tc/to-workload",
                        program_id: Some(43),
                        impostor: None,
                        program: "zt_tc_to",
                        before: Vec::new(),
                    }],
                }],
                points: Ok(vec![point(1, Some(41), &[]), point(2, None, &[99])]),
                astray: Vec::new(),
                maps: vec![Fill {
                    name: "zt_policy_v1",
                    rows: 150,
                    limit: 1000,
                }],
                totals: Totals {
                    decisions: 100,
                    lost_ring: 4,
                    ..Totals::default()
                },
                consumed: 95,
            }),
            audit_file: "/a.jsonl".into(),
        }
    }

    #[test]
    fn everything_is_on_one_page() {
        let text = sample().render(Paint(false));
        for part in [
            "agent running, pid 77\n",
            " generation    3 (epoch 0000000000000abc)\n",
            "problem: cgroup_skb/egress: our program is not attached; start the agent again to attach it\n",
            "problem: cgroup_skb/egress: program 99 (lb) is not ours and runs on the same cgroup; it may undo a denial\n",
            "\nattach points\n HOOK                PROGRAM     ID  STATE     STRANGERS\n \
             cgroup_skb/ingress  zt_ingress  41  attached\n \
             cgroup_skb/egress   zt_egress   -   MISSING   99 (lb)\n",
            "\nmaps\n zt_policy_v1  ##........  150 of 1000\n",
            " made                  100 = 96 emitted + 4 lost, the ring was full\n \
              emitted               96 = 95 consumed + 1 in the ring\n",
            "\nthe agent says\n trail.healthy   true\n trail.recorded  90\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_eq!(sample().problems().len(), 2);
    }

    #[test]
    fn an_agent_that_is_dead_or_silent_is_a_problem() {
        let mut status = sample();
        status.kernel = None;
        status.agent = Err("not running".into());
        status.pid = None;
        assert_eq!(
            status.problems(),
            [
                "no agent is running: changes are not applied and decisions not recorded; start it: zt-agent run",
                "nothing is loaded: nothing is enforced on this node"
            ]
        );
        status.pid = Some(1);
        status.agent = Err("no answer".into());
        assert_eq!(
            status.problems()[0],
            "the agent runs and does not answer: no answer"
        );
        assert_eq!(status.as_json()["running"], true);
    }

    #[test]
    fn sums_that_do_not_add_up_and_full_maps_are_problems() {
        let mut status = sample();
        let kernel = status.kernel.as_mut().unwrap();
        kernel.points = Ok(vec![]);
        kernel.consumed = 97;
        kernel.maps[0].rows = 900;
        let problems = status.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("the totals do not add up"));
        assert!(problems[1].starts_with("zt_policy_v1 is 90 % full"));
    }

    #[test]
    fn what_is_missing_or_comes_first_at_an_interface_is_a_problem() {
        let mut status = sample();
        let kernel = status.kernel.as_mut().unwrap();
        kernel.points = Ok(vec![]);
        let side = &mut kernel.interfaces[0].sides[0];
        side.before = vec!["tcx (program 9)".into()];
        side.program_id = None;
        let problems = status.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems
                .iter()
                .all(|p| p.starts_with("veth7, tc/to-workload: "))
        );
    }

    #[test]
    fn what_the_agent_says_is_one_line_each() {
        let mut rows = Vec::new();
        flat(
            "",
            &json!({"a": {"b": [{"c": "x"}, 2]}, "d": [], "e": null}),
            &mut rows,
        );
        assert_eq!(rows, [["a.b.1.c", "x"], ["a.b.2", "2"]]);
    }

    #[test]
    fn pods_that_began_before_they_were_governed_are_a_problem() {
        let mut status = sample();
        status.kernel.as_mut().unwrap().points = Ok(vec![]);
        status.agent = Ok(json!({"cluster": {"attached": 3, "exposed": []}}));
        assert_eq!(status.problems(), Vec::<String>::new());
        status.agent = Ok(json!({"cluster": {"exposed": ["bank/web-1", "bank/web-2"]}}));
        let [problem] = &status.problems()[..] else {
            panic!()
        };
        assert!(problem.starts_with("2 pods") && problem.contains("bank/web-1"));
    }

    #[test]
    fn an_unhealthy_trail_is_a_problem() {
        let mut status = sample();
        status.kernel.as_mut().unwrap().points = Ok(vec![]);
        status.agent = Ok(json!({"trail": {"healthy": false}, "not_ready": ["the disk"]}));
        let problems = status.problems();
        assert_eq!(problems[0], "the agent is not ready: the disk");
        assert_eq!(problems.len(), 2);
    }
}

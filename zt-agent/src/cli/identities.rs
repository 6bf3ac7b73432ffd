//! `zt-agent identities`

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
};

use serde_json::{Value, json};
use zt_common::{
    address::{AddressKey, workload_flags},
    codes::Protocol,
    identity::Number,
};

use super::{
    Global,
    output::{self, Output, Paint},
    settings,
};
use crate::{
    document::{Config, IdentityFile, identities::CgroupRef},
    explain::{names::Words, wanted},
    kernel::{
        cgroup,
        trust::TrustMap,
        view::{self, View},
    },
    model::{Mode, Name},
};

#[derive(Debug, clap::Args)]
pub struct IdentitiesArgs {
    #[command(flatten)]
    pub output: Output,
}

pub fn run(global: &Global, args: &IdentitiesArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    settings::require_root()?;
    let pins = settings::pins(&config);
    let view = View::read(&pins)?;
    let names = view.numbers.names().map(|(_, number)| number);
    let quarantined = TrustMap::open(&pins)?.quarantined(names)?;
    let file = settings::identities(&config).map(|(file, _)| file);
    let list = list(
        &view,
        &quarantined,
        &paths(&config),
        file.as_ref().ok(),
        &config,
    );
    if args.output.is_json() {
        output::json(&Value::Array(list.iter().map(Identity::as_json).collect()))?;
    } else {
        output::text(&render(&list, Paint::of_stdout()))?;
        if let Err(error) = file {
            output::text(&format!("\npending ones are not known: {error:#}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Cgroup paths below the mount, by id.
fn paths(config: &Config) -> BTreeMap<u64, PathBuf> {
    let Ok(mount) = cgroup::mount() else {
        return BTreeMap::new();
    };
    let short = |path: PathBuf| path.strip_prefix(&mount).map(Into::into).unwrap_or(path);
    (view::cgroup_paths(&mount.join(&config.cgroup_root)).into_iter())
        .map(|(id, path)| (id, short(path)))
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Enrolled,
    /// In the identity file; its cgroup is not there, or not applied yet.
    Pending,
    /// At addresses, and not a workload of this node.
    Elsewhere,
    /// At a Service's address: one of several.
    Service,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Pending => "pending",
            Self::Elsewhere => "elsewhere",
            Self::Service => "service",
        }
    }
}

#[derive(Clone, Debug)]
struct Identity {
    spiffe_id: String,
    number: Option<Number>,
    cgroup: Option<String>,
    mode: Option<Mode>,
    own_netns: bool,
    addresses: Vec<String>,
    quarantined: bool,
    state: State,
}

fn list(
    view: &View,
    quarantined: &BTreeSet<Number>,
    paths: &BTreeMap<u64, PathBuf>,
    file: Option<&IdentityFile>,
    config: &Config,
) -> Vec<Identity> {
    let words = Words::new(&view.numbers, true);
    let services = view.numbers.names();
    let services: BTreeSet<Number> = services
        .filter(|(name, _)| matches!(name, Name::Service(_)))
        .map(|(_, number)| number)
        .collect();
    let name = |number: Number| words.identity(number);
    let enrolled = view
        .tables
        .workload
        .iter()
        .filter(|(cgroup, _)| **cgroup != 0);
    let mut list: Vec<Identity> = enrolled
        .map(|(cgroup, row)| {
            let path = paths.get(cgroup).map(|path| path.display().to_string());
            Identity {
                spiffe_id: name(row.identity),
                number: Some(row.identity),
                cgroup: Some(path.unwrap_or_else(|| format!("gone (id {cgroup})"))),
                mode: Some(mode(row.flags & workload_flags::ENFORCE != 0)),
                own_netns: row.netns != 0,
                addresses: addresses(view, |peer| peer.cgroup == *cgroup),
                quarantined: quarantined.contains(&row.identity),
                state: State::Enrolled,
            }
        })
        .collect();
    list.extend(elsewhere(view, quarantined, &services, &name));
    let known: BTreeSet<String> = list.iter().map(|one| one.spiffe_id.clone()).collect();
    let entries = file.into_iter().flat_map(|file| &file.workloads);
    list.extend(
        entries
            .filter(|entry| !known.contains(entry.spiffe.as_str()))
            .map(|entry| Identity {
                spiffe_id: entry.spiffe.to_string(),
                number: None,
                cgroup: Some(match &entry.cgroup {
                    CgroupRef::Path(path) => path.display().to_string(),
                    CgroupRef::SystemdUnit(unit) => unit.to_string(),
                }),
                mode: Some(entry.mode.unwrap_or(config.mode)),
                own_netns: entry.network_namespace.is_some(),
                addresses: entry.addresses.iter().map(ToString::to_string).collect(),
                quarantined: false,
                state: State::Pending,
            }),
    );
    list.sort_by(|a, b| (&a.spiffe_id, &a.cgroup).cmp(&(&b.spiffe_id, &b.cgroup)));
    list
}

/// Identities that have addresses and no workload here.
fn elsewhere(
    view: &View,
    quarantined: &BTreeSet<Number>,
    services: &BTreeSet<Number>,
    name: &impl Fn(Number) -> String,
) -> Vec<Identity> {
    let here: BTreeSet<Number> = view
        .tables
        .workload
        .values()
        .map(|row| row.identity)
        .collect();
    let spiffe = zt_common::identity::FIRST_SPIFFE..zt_common::identity::FIRST_CLASS;
    let far: BTreeSet<Number> = (view.tables.address.values())
        .map(|peer| peer.identity)
        .filter(|number| spiffe.contains(number) && !here.contains(number))
        .collect();
    (far.into_iter())
        .map(|number| Identity {
            spiffe_id: name(number),
            number: Some(number),
            cgroup: None,
            mode: None,
            own_netns: false,
            addresses: addresses(view, |peer| peer.identity == number),
            quarantined: quarantined.contains(&number),
            state: if services.contains(&number) {
                State::Service
            } else {
                State::Elsewhere
            },
        })
        .collect()
}

fn addresses(view: &View, mine: impl Fn(&zt_common::address::Peer) -> bool) -> Vec<String> {
    // The unspecified address stands for binds, nobody is there.
    let rows = (view.tables.address.iter()).filter(|(key, peer)| key.ip != [0; 16] && mine(peer));
    rows.map(|(key, _)| address(key)).collect()
}

/// `10.0.0.1`, `127.0.0.1:53/udp`, `[::1]:53/udp`.
fn address(key: &AddressKey) -> String {
    let ip = wanted::address(&key.ip);
    if key.port == 0 {
        return ip.to_string();
    }
    let protocol = Protocol::from_code(key.protocol).map_or_else(
        || key.protocol.to_string(),
        |protocol| protocol.name().to_lowercase(),
    );
    format!("{}/{protocol}", std::net::SocketAddr::new(ip, key.port))
}

fn mode(enforce: bool) -> Mode {
    if enforce { Mode::Enforce } else { Mode::Audit }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

impl Identity {
    fn as_json(&self) -> Value {
        json!({
            "spiffe_id": self.spiffe_id,
            "number": self.number,
            "cgroup": self.cgroup,
            "mode": self.mode.map(mode_name),
            "own_network_namespace": self.own_netns,
            "addresses": self.addresses,
            "quarantined": self.quarantined,
            "state": self.state.name(),
        })
    }

    fn row(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let state = if self.quarantined {
            format!("{}, QUARANTINED", self.state.name())
        } else {
            self.state.name().to_owned()
        };
        vec![
            self.spiffe_id.clone(),
            self.number.map_or_else(dash, |number| number.to_string()),
            self.cgroup.clone().unwrap_or_else(dash),
            self.mode.map_or("-", mode_name).to_owned(),
            if self.own_netns { "own" } else { "shared" }.to_owned(),
            self.addresses.join(" "),
            state,
        ]
    }
}

fn render(list: &[Identity], paint: Paint) -> String {
    if list.is_empty() {
        return "nobody is enrolled on this node\n".to_owned();
    }
    let header = [
        "SPIFFE ID",
        "NUMBER",
        "CGROUP",
        "MODE",
        "NETNS",
        "ADDRESSES",
        "STATE",
    ];
    let text = output::table(&header, list.iter().map(Identity::row));
    text.replace("QUARANTINED", &paint.bad("QUARANTINED"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::samples::{built, endpoint, model, port_endpoint, workload};
    use crate::document::{SourceFile, identities};
    use zt_common::state::Control;

    #[test]
    fn who_is_there_who_is_elsewhere_and_who_is_to_come() {
        let mut node = model();
        node.workloads = vec![workload("db", 10), workload("web", 11)];
        node.workloads[1].mode = Mode::Audit;
        node.endpoints = vec![
            endpoint("10.0.0.1", "db", 10),
            port_endpoint("10.0.0.2", "web", 11, 80),
            endpoint("10.9.0.9", "far", 0),
        ];
        let built = built(&node);
        let view = View {
            generation: 1,
            control: Control::default(),
            tables: built.tables().clone(),
            numbers: built.numbers.clone(),
        };
        let file = SourceFile::new(
            "i.yaml",
            "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n  - {spiffe: \"spiffe://td/new\", cgroup: zt/new}\n  - {spiffe: \"spiffe://td/db\", cgroup: zt/db}\n",
        );
        let file = identities::parse(&file).unwrap();
        let list = list(
            &view,
            &BTreeSet::from([built.number("db")]),
            &BTreeMap::from([(10, "zt/db".into())]),
            Some(&file),
            &Config::default(),
        );
        assert_eq!(
            render(&list, Paint(false)),
            " SPIFFE ID        NUMBER  CGROUP        MODE     NETNS   ADDRESSES        STATE\n \
             spiffe://td/db   256     zt/db         enforce  shared  10.0.0.1         enrolled, QUARANTINED\n \
             spiffe://td/far  257     -             -        shared  10.9.0.9         elsewhere\n \
             spiffe://td/new  -       zt/new        enforce  shared                   pending\n \
             spiffe://td/web  258     gone (id 11)  audit    shared  10.0.0.2:80/tcp  enrolled\n"
        );
        assert_eq!(list[2].as_json()["state"], "pending");
        assert_eq!(
            render(&[], Paint(false)),
            "nobody is enrolled on this node\n"
        );
    }
}

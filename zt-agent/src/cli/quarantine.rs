//! `zt-agent quarantine`

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Context as _;
use jiff::{Timestamp, Unit};
use serde_json::json;

use super::{
    Global,
    output::{self, Output, Paint},
    settings,
};
use crate::{
    document::Config,
    kernel::{KernelError, names::NameMaps, trust::TrustMap},
    model::{Name, SpiffeId},
    source::quarantine::{Entry, Quarantine},
};

#[derive(Debug, clap::Subcommand)]
pub enum QuarantineCommand {
    /// Cut an identity off
    Add(AddArgs),
    /// Lift it
    Remove(RemoveArgs),
    /// Who is quarantined
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    #[arg(value_name = "SPIFFE-ID")]
    pub id: SpiffeId,
    /// Why, for those who look later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[arg(value_name = "SPIFFE-ID")]
    pub id: SpiffeId,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub output: Output,
}

pub fn run(global: &Global, command: &QuarantineCommand) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    match command {
        QuarantineCommand::Add(args) => add(&config, args),
        QuarantineCommand::Remove(args) => remove(&config, args),
        QuarantineCommand::List(args) => list(&config, args),
    }
}

/// What became of it in the kernel.
#[derive(Debug)]
enum Effect {
    Written,
    /// The identity has no number yet.
    Unknown,
    /// Nothing is loaded.
    NotLoaded,
}

fn add(config: &Config, args: &AddArgs) -> anyhow::Result<ExitCode> {
    settings::require_root()?;
    // The kernel first: whoever quarantines wants it now, also if the disk is
    // full.
    let effect = write(config, &args.id, true)?;
    record(config, args).with_context(|| match effect {
        Effect::Written => {
            "it is cut off now but not recorded, so it ends when the agent starts again"
        }
        _ => "it is not recorded",
    })?;
    output::text(&(said(&args.id, true, &effect) + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn record(config: &Config, args: &AddArgs) -> anyhow::Result<()> {
    let now = Timestamp::now().round(Unit::Second)?;
    let mut list = Quarantine::load(&config.state_directory)?;
    list.add(args.id.clone(), args.reason.clone(), now);
    Ok(list.save()?)
}

fn remove(config: &Config, args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    settings::require_root()?;
    // The file first: if it cannot be written, nothing is lifted.
    let mut list = Quarantine::load(&config.state_directory)?;
    let found = list.remove(&args.id);
    list.save()?;
    let effect = write(config, &args.id, false)?;
    let answer = if found {
        said(&args.id, false, &effect)
    } else {
        format!("{} was not quarantined", args.id)
    };
    output::text(&(answer + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn write(config: &Config, id: &SpiffeId, quarantined: bool) -> anyhow::Result<Effect> {
    let pins = settings::pins(config);
    let numbers = match NameMaps::open(&pins) {
        Err(KernelError::NotRunning(_)) => return Ok(Effect::NotLoaded),
        maps => maps?.read()?,
    };
    let Some(number) = numbers.get(&Name::Spiffe(id.clone())) else {
        return Ok(Effect::Unknown);
    };
    TrustMap::open(&pins)?.set(number, quarantined)?;
    Ok(Effect::Written)
}

fn said(id: &SpiffeId, quarantined: bool, effect: &Effect) -> String {
    match (quarantined, effect) {
        (true, Effect::Written) => format!(
            "{id} is quarantined: nothing to or from it passes, in every mode, effective on the next packet"
        ),
        (true, Effect::Unknown) => format!(
            "{id} is recorded as quarantined; nobody on this node has or meets that identity yet: it takes effect when it appears (check the spelling: `zt-agent identities`)"
        ),
        (true, Effect::NotLoaded) => format!(
            "{id} is recorded as quarantined; nothing is enforced now, no programs are loaded: it takes effect when the agent starts"
        ),
        (false, Effect::Written) => {
            format!(
                "{id} is no longer quarantined: its policies decide again, effective on the next packet"
            )
        }
        (false, _) => format!("{id} is no longer quarantined"),
    }
}

fn list(config: &Config, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let list = Quarantine::load(&config.state_directory)?;
    let kernel = in_kernel(config).ok();
    if args.output.is_json() {
        let entries: Vec<_> = (list.entries().iter())
            .map(|entry| {
                json!({
                    "spiffe_id": entry.spiffe_id.as_str(),
                    "since": entry.since.to_string(),
                    "reason": entry.reason,
                    "in_kernel": kernel.as_ref().map(|k| k.contains(&entry.spiffe_id)),
                })
            })
            .collect();
        output::json(
            &json!({ "identities": entries, "only_in_kernel": only(&list, kernel.as_ref()) }),
        )?;
    } else {
        output::text(&render(&list, kernel.as_ref(), Paint::of_stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Who is quarantined in the kernel now.
fn in_kernel(config: &Config) -> anyhow::Result<BTreeSet<SpiffeId>> {
    let pins = settings::pins(config);
    let numbers = NameMaps::open(&pins)?.read()?;
    let trust = TrustMap::open(&pins)?;
    let mut found = BTreeSet::new();
    for (name, number) in numbers.names() {
        if let Name::Spiffe(id) = name
            && trust.is_quarantined(number)?
        {
            found.insert(id.clone());
        }
    }
    Ok(found)
}

fn only(list: &Quarantine, kernel: Option<&BTreeSet<SpiffeId>>) -> Vec<String> {
    let recorded = |id: &&SpiffeId| list.entries().iter().any(|entry| entry.spiffe_id == **id);
    (kernel.into_iter().flatten())
        .filter(|id| !recorded(id))
        .map(ToString::to_string)
        .collect()
}

fn render(list: &Quarantine, kernel: Option<&BTreeSet<SpiffeId>>, paint: Paint) -> String {
    let state = |entry: &Entry| match kernel {
        None => "unknown: the kernel cannot be read",
        Some(kernel) if kernel.contains(&entry.spiffe_id) => "in force",
        Some(_) => "waits for the identity to appear",
    };
    let rows = list.entries().iter().map(|entry| {
        vec![
            entry.spiffe_id.to_string(),
            entry.since.to_string(),
            entry.reason.clone().unwrap_or_default(),
            state(entry).to_owned(),
        ]
    });
    let mut out = output::table(&["SPIFFE ID", "SINCE", "REASON", "STATE"], rows);
    for id in only(list, kernel) {
        out += &format!(
            "{}: {id} is quarantined in the kernel and not recorded: it is lifted at the next start\n",
            paint.doubtful("warning")
        );
    }
    if out.is_empty() {
        return "nobody is quarantined\n".to_owned();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    #[test]
    fn the_list_tells_what_is_in_force() {
        let directory = tempfile::TempDir::new().unwrap();
        let mut list = Quarantine::load(directory.path()).unwrap();
        let paint = Paint(false);
        assert_eq!(render(&list, None, paint), "nobody is quarantined\n");
        let since = "2026-11-21T12:00:00Z".parse().unwrap();
        list.add(id("a"), Some("key leaked".into()), since);
        list.add(id("b"), None, since);
        let kernel = BTreeSet::from([id("a"), id("c")]);
        assert_eq!(
            render(&list, Some(&kernel), paint),
            " SPIFFE ID      SINCE                 REASON      STATE\n \
             spiffe://td/a  2026-11-21T12:00:00Z  key leaked  in force\n \
             spiffe://td/b  2026-11-21T12:00:00Z              waits for the identity to appear\n\
             warning: spiffe://td/c is quarantined in the kernel and not recorded: it is lifted at the next start\n"
        );
    }

    #[test]
    fn the_answer_says_when_it_takes_effect() {
        let text = |quarantined, effect| said(&id("a"), quarantined, &effect);
        assert!(text(true, Effect::Written).ends_with("effective on the next packet"));
        assert!(text(true, Effect::Unknown).contains("when it appears"));
        assert!(text(true, Effect::NotLoaded).contains("when the agent starts"));
        assert!(text(false, Effect::Written).ends_with("effective on the next packet"));
    }
}

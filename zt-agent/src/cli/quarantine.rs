//! `zt-agent quarantine`

use std::{
    collections::BTreeSet,
    fs::{self, File},
    process::ExitCode,
};

use anyhow::Context as _;
use jiff::{Timestamp, Unit};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use zt_common::identity::Number;

use super::{
    Global,
    output::{self, Output, Paint},
    settings,
};
use crate::{
    admin::{self, client},
    document::Config,
    kernel::{KernelError, names::NameMaps, trust::TrustMap},
    model::{Name, Numbers, SpiffeId},
    source::quarantine::{self, Entry, Quarantine},
};

#[derive(Debug, clap::Subcommand)]
pub enum QuarantineCommand {
    /// Cut an identity off, at once and in every mode
    Add(AddArgs),
    /// Lift a quarantine: the policies decide again
    Remove(RemoveArgs),
    /// Show who is quarantined, since when and why
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// The whole SPIFFE ID
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

/// Held while the list is changed.
const LOCK: &str = "quarantine.lock";

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
    let now = Timestamp::now().round(Unit::Second)?.to_string();
    let reason = args.reason.clone().unwrap_or_default();
    change(config, |list| list.add(args.id.clone(), now, reason))?;
    Ok(())
}

/// Changes the recorded list. Locked: two commands at once would otherwise
/// lose one of the changes.
fn change(config: &Config, how: impl FnOnce(&mut Quarantine) -> bool) -> anyhow::Result<bool> {
    let directory = &config.state_directory;
    let failed = || format!("cannot write in {}", directory.display());
    fs::create_dir_all(directory).with_context(failed)?;
    let file = File::create(directory.join(LOCK)).with_context(failed)?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(failed)?;
    let path = quarantine::path(directory);
    let mut list = Quarantine::read(&path)?;
    let changed = how(&mut list);
    if changed {
        list.write(&path)?;
    }
    Ok(changed)
}

fn remove(config: &Config, args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    settings::require_root()?;
    // The file first: if it cannot be written, nothing is lifted.
    let found = change(config, |list| list.remove(&args.id))?;
    // A running agent may be in the middle of a step that began with the old
    // file, and would set again what we lift: it takes the new one first. One
    // that does not answer does so by itself; that it is dead is fine.
    let _ = client::reload(&admin::socket(&config.runtime_directory));
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
    let trust = TrustMap::open(&pins)?;
    trust.set(number, quarantined)?;
    let services = leading_to(id, &numbers);
    for (name, number) in &services {
        let is_cut = quarantined || is_cut_for_another(name, &numbers, &trust)?;
        trust.set(*number, is_cut)?;
    }
    // The agent may just have given a number back, and then to somebody else.
    let now = NameMaps::open(&pins)?.read()?;
    let own = Name::Spiffe(id.clone());
    let touched = std::iter::once((&own, number)).chain(services);
    let lost = touched.filter(|(name, number)| now.get(name) != Some(*number));
    // People first: Services are cut off for them.
    let lost: Vec<Number> = lost.map(|(_, number)| number).collect();
    if !lost.is_empty() {
        put_right(config, &trust, &now, &lost)?;
    }
    if quarantined && lost.contains(&number) {
        return Ok(Effect::Unknown);
    }
    Ok(Effect::Written)
}

/// Cuts off whoever has these numbers now if he is to be, and nobody else.
fn put_right(
    config: &Config,
    trust: &TrustMap,
    now: &Numbers,
    lost: &[Number],
) -> Result<(), KernelError> {
    // One that cannot be read releases nobody.
    let list = Quarantine::read(&quarantine::path(&config.state_directory)).ok();
    let named = |id: &SpiffeId| list.as_ref().is_none_or(|list| list.contains(id));
    for number in lost {
        let is_cut = is_heir_cut(*number, now, named, |one| trust.is_quarantined(one))?;
        trust.set(*number, is_cut)?;
    }
    Ok(())
}

/// Whether who has a number that was somebody else's just now is cut off: by the
/// list, or, a Service, for somebody behind it who is.
fn is_heir_cut(
    number: Number,
    now: &Numbers,
    named: impl Fn(&SpiffeId) -> bool,
    in_kernel: impl Fn(Number) -> Result<bool, KernelError>,
) -> Result<bool, KernelError> {
    let Some((heir, _)) = now.names().find(|(_, other)| *other == number) else {
        return Ok(false);
    };
    if heir.identities().any(named) {
        return Ok(true);
    }
    let Name::Service(_) = heir else {
        return Ok(false);
    };
    for number in behind(heir, now) {
        if in_kernel(number)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The Services that lead to it among others: nobody knows whom one would reach.
fn leading_to<'a>(id: &SpiffeId, numbers: &'a Numbers) -> Vec<(&'a Name, Number)> {
    let leads =
        |name: &Name| matches!(name, Name::Service(_)) && name.identities().any(|one| one == id);
    numbers.names().filter(|(name, _)| leads(name)).collect()
}

fn is_cut_for_another(
    name: &Name,
    numbers: &Numbers,
    trust: &TrustMap,
) -> Result<bool, KernelError> {
    Ok(!trust.quarantined(behind(name, numbers))?.is_empty())
}

fn behind(name: &Name, numbers: &Numbers) -> impl Iterator<Item = Number> {
    let behind = name.identities();
    behind.filter_map(|id| numbers.get(&Name::Spiffe(id.clone())))
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
    let list = Quarantine::read(&quarantine::path(&config.state_directory))?;
    let kernel = in_kernel(config).ok();
    if args.output.is_json() {
        let entries: Vec<_> = (list.identities.iter())
            .map(|entry| {
                json!({
                    "spiffe_id": entry.spiffe_id.0.as_str(),
                    "since": entry.since.clone(),
                    "reason": entry.reason,
                    "in_kernel": kernel.as_ref().map(|k| k.contains(&entry.spiffe_id.0)),
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
    let recorded = |id: &&SpiffeId| list.contains(id);
    (kernel.into_iter().flatten())
        .filter(|id| !recorded(id))
        .map(ToString::to_string)
        .collect()
}

fn render(list: &Quarantine, kernel: Option<&BTreeSet<SpiffeId>>, paint: Paint) -> String {
    let state = |entry: &Entry| match kernel {
        None => "unknown: the kernel cannot be read",
        Some(kernel) if kernel.contains(&entry.spiffe_id.0) => "in force",
        Some(_) => "waits for the identity to appear",
    };
    let rows = list.identities.iter().map(|entry| {
        vec![
            entry.spiffe_id.0.to_string(),
            entry.since.clone(),
            entry.reason.clone(),
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
        let mut list = Quarantine::default();
        let paint = Paint(false);
        assert_eq!(render(&list, None, paint), "nobody is quarantined\n");
        let since = || "2026-11-21T12:00:00Z".to_owned();
        list.add(id("a"), since(), "key leaked".into());
        list.add(id("b"), since(), String::new());
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
    fn what_is_added_is_recorded_until_it_is_removed() {
        let directory = tempfile::TempDir::new().unwrap();
        let config = Config {
            state_directory: directory.path().join("state"),
            ..Config::default()
        };
        let args = AddArgs {
            id: id("a"),
            reason: Some("key leaked".into()),
        };
        record(&config, &args).unwrap();
        record(&config, &args).unwrap();
        let read = || Quarantine::read(&quarantine::path(&config.state_directory)).unwrap();
        assert_eq!(read().identities.len(), 1);
        assert_eq!(read().identities[0].reason, "key leaked");
        assert!(change(&config, |list| list.remove(&id("a"))).unwrap());
        assert!(read().identities.is_empty());
    }

    #[test]
    fn who_inherits_a_number_is_cut_off_for_himself_and_for_nobody_else() {
        let service = |name: &str| {
            let text = format!("service ns/web (spiffe://td/a at 80, spiffe://td/{name} at 80)");
            Name::Service(std::sync::Arc::new(text.parse().unwrap()))
        };
        let mut now = Numbers::default();
        let mut give = |name: &Name| now.intern(name).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| give(&Name::Spiffe(id(name))));
        let [with_b, with_c] = ["b", "c"].map(|name| give(&service(name)));
        let cut = |number, named: &[&str], in_kernel: Number| {
            let named = |one: &SpiffeId| named.iter().any(|name| id(name) == *one);
            is_heir_cut(number, &now, named, |number| Ok(number == in_kernel)).unwrap()
        };
        // b is cut off: a Service with him keeps that, and nobody else does.
        assert!(cut(with_b, &["b"], b) && cut(b, &["b"], b));
        assert!(!cut(with_c, &["b"], b) && !cut(c, &["b"], b));
        // Not all that is cut off is recorded yet.
        assert!(cut(with_b, &[], a) && cut(with_c, &[], a) && !cut(with_c, &[], b));
        // What is said of a number that was another's says nothing of who has it now.
        assert!(!cut(c, &[], c));
        assert!(!cut(999, &["a", "b", "c"], 999));
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

//! What the kernel programs take, in numbers that no machine changes: instructions,
//! calls of helpers, lookups. The last commit's are in a file, and growth has to be
//! explained.

mod cases;
mod interpreter;
mod kernel;
mod memory;
mod table;
pub mod verified;
mod whole;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bytecode::Object;
use crate::step::Steps;
use crate::workspace;
use table::{Change, Part, Table};

/// Where the counts of the last commit are, from the root of the clone.
const FILE: &str = "zt-ebpf/counts.txt";

const ACCEPT: &str = "accept it with `cargo xtask counts --accept`";

#[derive(clap::Args)]
pub struct Arguments {
    /// Write the counts to zt-ebpf/counts.txt, to be committed with what explains
    /// them.
    #[arg(long)]
    accept: bool,
}

/// Counts the programs that were built last.
pub fn run(steps: &Steps, arguments: &Arguments) -> Result<()> {
    let path = workspace::bpf_object("zt-ebpf");
    let elf = fs::read(&path).with_context(|| {
        let path = path.display();
        format!("cannot read {path}: cargo xtask build makes it")
    })?;
    let now = count(&elf)?;
    print!("{now}");
    if !arguments.accept {
        let changes = now.changes_since(&known()?);
        tell(steps, &changes);
        return judge(&changes);
    }
    let file = file();
    // What no kernel here has counted stays as it is.
    let before = if file.exists() {
        known()?
    } else {
        Table::default()
    };
    let text = before.replaced(&now).to_string();
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    steps.note(&format!("written to {FILE}: commit it"));
    Ok(())
}

/// Compares with the last commit the counts of programs that were just built.
pub fn check(steps: &Steps, object: &Path) -> Result<()> {
    let changes = steps.check("Compare what they take with the last commit", || {
        let now = count(&fs::read(object)?)?;
        let changes = now.changes_since(&known()?);
        judge(&changes)?;
        Ok(changes)
    })?;
    tell(steps, &changes);
    Ok(())
}

/// Keeps what verifiers said of these programs, and gives what is bad about it, by
/// kernel.
pub fn verified(
    object: &Path,
    kernels: BTreeMap<String, Vec<(String, u32)>>,
) -> Result<BTreeMap<String, String>> {
    let bad = worse(&known()?, &kernels);
    verified::keep(&fs::read(object)?, kernels)?;
    Ok(bad)
}

fn worse(
    known: &Table,
    kernels: &BTreeMap<String, Vec<(String, u32)>>,
) -> BTreeMap<String, String> {
    let mut bad = BTreeMap::new();
    for (series, programs) in kernels {
        let mut now = known.clone().without(&Part::Verified(series.clone()));
        now.add_verified(series, programs);
        if let Some(complaint) = complaint(&now.changes_since(known)) {
            bad.insert(series.clone(), complaint);
        }
    }
    bad
}

fn file() -> PathBuf {
    workspace::root().join(FILE)
}

/// Of the last commit.
fn known() -> Result<Table> {
    let file = file();
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {FILE}: restore it, or {ACCEPT}"))?;
    Table::read(&text).with_context(|| format!("{FILE}: restore it, or remove it and {ACCEPT}"))
}

fn count(elf: &[u8]) -> Result<Table> {
    let object = Object::read(elf)?;
    let mut table = Table::default();
    for (place, program) in object.programs() {
        let counts = whole::count(&object, place).with_context(|| program.name.clone())?;
        table.add(Part::Whole, &program.name, counts);
    }
    ensure!(!table.parts().is_empty(), "the object has no programs");
    for (name, counts) in cases::count(&object)? {
        table.add(Part::Cached, name, counts);
    }
    verified::add_to(&mut table, elf)?;
    Ok(table)
}

/// Says what shrank.
fn tell(steps: &Steps, changes: &[Change]) {
    for change in changes {
        if let Change::Good(text) = change {
            steps.note(&format!("{text}; {ACCEPT}"));
        }
    }
}

/// Fails if something grew.
fn judge(changes: &[Change]) -> Result<()> {
    match complaint(changes) {
        Some(complaint) => bail!(complaint),
        None => Ok(()),
    }
}

/// What is bad, a line each.
fn complaint(changes: &[Change]) -> Option<String> {
    let bad = changes.iter().filter_map(|change| match change {
        Change::Bad(text) => Some(format!("{text}; explain it in the commit, and {ACCEPT}")),
        Change::Good(_) => None,
    });
    let lines: Vec<String> = bad.collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_fails_and_says_what_to_do_and_shrinking_passes() {
        let good = Change::Good("zt_egress (whole): instructions 9 → 8".to_owned());
        assert!(judge(std::slice::from_ref(&good)).is_ok());
        let bad = Change::Bad("zt_egress (whole): map lookups 3 → 4".to_owned());
        let error = judge(&[good, bad]).unwrap_err().to_string();
        assert_eq!(
            error,
            "zt_egress (whole): map lookups 3 → 4; explain it in the commit, \
             and accept it with `cargo xtask counts --accept`"
        );
    }

    #[test]
    fn a_kernel_that_walks_more_than_before_is_named() {
        let one = |count| vec![("zt_egress".to_owned(), count)];
        let mut known = Table::default();
        known.add_verified("6.1", &one(1000));
        known.add_verified("6.12", &one(1000));
        let kernels = [("6.1", one(1020)), ("6.12", one(2000)), ("6.18", one(3000))];
        let kernels = kernels.map(|(series, programs)| (series.to_owned(), programs));
        let bad = worse(&known, &BTreeMap::from(kernels));
        assert_eq!(bad.keys().collect::<Vec<_>>(), ["6.12"]);
        let start = "zt_egress (linux-6.12): instructions 1000 → 2000; explain";
        assert!(bad["6.12"].starts_with(start), "{bad:?}");
        let other = vec![("zt_ingress".to_owned(), 5)];
        let bad = worse(&known, &BTreeMap::from([("6.1".to_owned(), other)]));
        for text in [
            "zt_egress (linux-6.1): is gone",
            "zt_ingress (linux-6.1): is new",
        ] {
            assert!(bad["6.1"].contains(text), "{bad:?}");
        }
    }

    #[test]
    fn the_committed_file_is_as_it_is_written() {
        let text = fs::read_to_string(file()).unwrap();
        assert_eq!(known().unwrap().to_string(), text);
    }
}

//! Checks a trail: every line, the chain, the sums and the signatures.
//! Streams; memory does not grow with the trail.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signature, VerifyingKey};
use serde::Deserialize;

use super::{
    AuditError,
    account::{Cause, Effect, Losses, Rebase},
    chain::{Chain, Hash, Links, parse_hex, take_apart},
    record::{InFlight, KernelTotals},
    rotate,
};

/// The first record that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub file: PathBuf,
    /// Counts from 1 within the file.
    pub line: u64,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// What a trail was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines checked, up to the first that does not fit.
    pub lines: u64,
    /// The oldest file starts after line 1 of the chain: number of its first
    /// line. Its `previous` could not be checked.
    pub starts_at: Option<u64>,
    /// Epochs seen.
    pub epochs: u64,
    /// Decisions that the lines stand for.
    pub recorded: u64,
    /// Losses that the lines tell of.
    pub lost: Losses,
    pub checkpoints: u64,
    /// Lines after the last checkpoint: chained, but not signed yet.
    pub unsigned: u64,
    /// What the last checkpoint says was still on its way.
    pub in_flight: Option<InFlight>,
    /// The trail itself tells of these.
    pub anomalies: Vec<Fault>,
    /// Times that somebody altered what enforces, and it was put right. The
    /// trail is sound all the same.
    pub repairs: u64,
    /// Bytes after the last line end: a line being written, or torn by a crash.
    pub torn: u64,
    pub fault: Option<Fault>,
}

impl Report {
    /// Whether every line fits and the trail tells of no anomaly.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.fault.is_none() && self.anomalies.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} lines, {} decisions recorded",
            self.lines, self.recorded
        )?;
        for (cause, count) in self.lost.iter() {
            writeln!(f, "{count} decisions lost: {}", cause.name())?;
        }
        if let Some(line) = self.starts_at {
            writeln!(
                f,
                "starts at line {line} of the chain; what came before was not checked"
            )?;
        }
        writeln!(
            f,
            "{} signed checkpoints; {} records after the last signed checkpoint",
            self.checkpoints, self.unsigned
        )?;
        if let Some(InFlight {
            unsettled,
            ring,
            folding,
            shed,
        }) = self.in_flight
        {
            writeln!(
                f,
                "in flight at the last checkpoint: {unsettled} being decided, {ring} in the ring, {folding} being folded, {shed} shed"
            )?;
        }
        if self.torn > 0 {
            writeln!(f, "the last line is incomplete ({} bytes)", self.torn)?;
        }
        if self.repairs > 0 {
            writeln!(
                f,
                "{} repairs: somebody altered what enforces; look for \"kind\":\"repair\"",
                self.repairs
            )?;
        }
        for anomaly in &self.anomalies {
            writeln!(f, "anomaly: {anomaly}")?;
        }
        match &self.fault {
            Some(fault) => write!(f, "does not fit: {fault}"),
            None => write!(f, "every line fits"),
        }
    }
}

/// Checks the trail whose current file is `path`, with all older files that
/// are kept.
///
/// # Errors
/// If a file cannot be read. What is wrong *in* the files is in the report.
pub fn verify_path(path: &Path, key: &VerifyingKey) -> Result<Report, AuditError> {
    let files = rotate::all_files(path).map_err(AuditError::io("list", path))?;
    verify(&files, key)
}

/// Checks files that make up one chain, oldest first.
///
/// # Errors
/// If a file cannot be read. What is wrong *in* the files is in the report.
pub fn verify(files: &[PathBuf], key: &VerifyingKey) -> Result<Report, AuditError> {
    let mut checker = Checker {
        key,
        report: Report::default(),
        chain: None,
    };
    for (index, path) in files.iter().enumerate() {
        let newest = index + 1 == files.len();
        let file = File::open(path).map_err(AuditError::io("open", path))?;
        let ended = checker
            .file(path, BufReader::new(file), newest)
            .map_err(AuditError::io("read", path))?;
        if ended {
            break;
        }
    }
    Ok(checker.report)
}

struct Checker<'a> {
    key: &'a VerifyingKey,
    report: Report,
    /// After the last line; `None` before the first.
    chain: Option<Chain>,
}

impl Checker<'_> {
    /// Returns whether a line did not fit.
    fn file(&mut self, path: &Path, mut lines: impl BufRead, newest: bool) -> io::Result<bool> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = read_line(&mut lines, &mut line)?;
            let at = |what| Fault {
                file: path.to_owned(),
                line: number,
                what,
            };
            match read {
                Read::End => break,
                Read::Torn if newest => {
                    self.report.torn = u64::try_from(line.len()).unwrap_or(u64::MAX);
                    break;
                }
                Read::Torn => {
                    self.report.fault = Some(at("it has no line end".to_owned()));
                    return Ok(true);
                }
                Read::TooLong => {
                    self.report.fault = Some(at("it is too long for a record".to_owned()));
                    return Ok(true);
                }
                Read::Line => {}
            }
            match self.line(&line) {
                Ok(None) => {}
                Ok(Some(anomaly)) => self.report.anomalies.push(at(anomaly)),
                Err(what) => {
                    self.report.fault = Some(at(what));
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Checks one line; returns the anomaly it tells of.
    fn line(&mut self, line: &[u8]) -> Result<Option<String>, String> {
        let (links, hash, signature) = take_apart(line)?;
        let body: Body =
            serde_json::from_slice(line).map_err(|e| format!("it is no record: {e}"))?;
        let after = links.chain(hash)?;
        self.check_link(&links, &body, &after)?;
        match (&body, signature) {
            (Body::Checkpoint(checkpoint), Some(signature)) => {
                self.check_signature(hash, signature)?;
                checkpoint.check(&after)?;
                self.report.checkpoints += 1;
                self.report.unsigned = 0;
                self.report.in_flight = Some(checkpoint.in_flight);
            }
            (Body::Checkpoint(_), None) => return Err("a checkpoint without signature".to_owned()),
            (_, Some(_)) => return Err("a signature on what is no checkpoint".to_owned()),
            (_, None) => self.report.unsigned += 1,
        }
        self.report.lines += 1;
        self.chain = Some(after);
        match body.effect() {
            Effect::Recorded(count) => {
                self.report.recorded = self.report.recorded.saturating_add(count);
            }
            Effect::Lost(cause, count) => self.report.lost.add(cause, count),
            Effect::None | Effect::Rebased(_) => {}
        }
        self.report.repairs += u64::from(matches!(body, Body::Repair {}));
        Ok(match body {
            Body::Anomaly { detail, .. } => Some(detail),
            _ => None,
        })
    }

    /// Does it follow from the line before?
    fn check_link(&mut self, links: &Links, body: &Body, after: &Chain) -> Result<(), String> {
        let before = match self.chain {
            Some(chain) => chain,
            None if after.line == 1 => Chain::default(),
            None => {
                self.report.starts_at = Some(after.line);
                self.report.epochs = 1;
                return Ok(());
            }
        };
        let previous = Hash::parse(&links.previous).ok_or("previous is not 64 hex digits")?;
        if after.line != before.line.saturating_add(1) {
            return Err(format!(
                "line {} follows line {}: lines are missing or were moved",
                after.line, before.line
            ));
        }
        if previous != before.hash {
            return Err("it does not continue the line before: that one was changed, or lines were removed or moved".to_owned());
        }
        if after.epoch != before.epoch || self.chain.is_none() {
            if !matches!(body, Body::Start {}) {
                return Err("an epoch begins without a start record".to_owned());
            }
            self.report.epochs += 1;
        }
        let mut wanted = before.in_epoch(after.epoch).sums;
        wanted.apply(body.effect());
        if wanted != after.sums {
            return Err(format!(
                "its total is {} with losses {:?}, but the lines before it and its own count make {} with {:?}",
                after.sums.total(),
                named(&after.sums.lost),
                wanted.total(),
                named(&wanted.lost)
            ));
        }
        Ok(())
    }

    fn check_signature(&self, hash: Hash, signature: &str) -> Result<(), String> {
        let bytes = parse_hex(signature).ok_or("its signature is not 128 hex digits")?;
        self.key
            .verify_strict(hash.to_string().as_bytes(), &Signature::from_bytes(&bytes))
            .map_err(|_| {
                "its signature is not by this key: the trail was rewritten, or the key is another node's"
                    .to_owned()
            })
    }
}

fn named(losses: &Losses) -> Vec<(&'static str, u64)> {
    losses.iter().map(|(cause, n)| (cause.name(), n)).collect()
}

/// What verification needs of a line besides its chain fields.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Body {
    Start {},
    Decision {
        count: u64,
    },
    Loss {
        cause: Cause,
        count: u64,
    },
    Checkpoint(Checkpoint),
    Anomaly {
        detail: String,
        rebase: Option<Rebase>,
    },
    Repair {},
}

impl Body {
    fn effect(&self) -> Effect {
        match self {
            Self::Decision { count } => Effect::Recorded(*count),
            Self::Loss { cause, count } => Effect::Lost(*cause, *count),
            Self::Anomaly {
                rebase: Some(rebase),
                ..
            } => Effect::Rebased(*rebase),
            Self::Start {} | Self::Checkpoint(_) | Self::Anomaly { .. } | Self::Repair {} => {
                Effect::None
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    kernel: KernelTotals,
    recorded: u64,
    in_flight: InFlight,
}

impl Checkpoint {
    /// Do the kernel's totals and the trail's agree?
    fn check(&self, after: &Chain) -> Result<(), String> {
        let kernel = &self.kernel;
        let flight = &self.in_flight;
        let told = after.sums.lost.of(Cause::RingFull);
        if self.recorded != after.sums.recorded {
            return Err("recorded is not the sum of the lines before it".to_owned());
        }
        let parts = [
            kernel.emitted.into(),
            kernel.lost_ring.into(),
            flight.unsettled.into(),
        ];
        agree(
            "decisions",
            kernel.decisions,
            &parts,
            "emitted, lost_ring and unsettled",
        )?;
        let parts = [
            after.sums.total().into(),
            flight.ring.into(),
            flight.folding.into(),
            flight.shed.into(),
        ];
        agree(
            "emitted",
            kernel.emitted,
            &parts,
            "total, ring, folding and shed",
        )?;
        agree(
            "lost_ring",
            kernel.lost_ring,
            &[told.into()],
            "the losses in the ring",
        )
    }
}

fn agree(name: &str, value: u64, parts: &[i128], names: &str) -> Result<(), String> {
    let sum: i128 = parts.iter().sum();
    if i128::from(value) == sum {
        return Ok(());
    }
    Err(format!(
        "the checkpoint does not reconcile: the kernel's {name} is {value}, but {names} make {sum}"
    ))
}

enum Read {
    Line,
    /// Bytes without a line end.
    Torn,
    TooLong,
    End,
}

/// Reads a line without its end, of at most a mebibyte.
fn read_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Read> {
    const LONGEST: u64 = 1 << 20;
    let read = io::Read::take(&mut *lines, LONGEST).read_until(b'\n', line)?;
    Ok(if read == 0 {
        Read::End
    } else if line.pop_if(|byte| *byte == b'\n').is_some() {
        Read::Line
    } else if u64::try_from(read).is_ok_and(|read| read == LONGEST) {
        Read::TooLong
    } else {
        Read::Torn
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::LazyLock};

    use ed25519_dalek::SigningKey;
    use proptest::prelude::*;

    use super::super::{
        chain::HASH_MARK,
        rotate::numbered,
        testing::{Place, distinct, names},
    };
    use super::*;

    /// A trail of one start, `count` decisions and a checkpoint.
    fn trail(count: u16) -> Place {
        let mut place = Place::new();
        place.run(count);
        assert!(place.verify().is_sound());
        place
    }

    #[track_caller]
    fn assert_fault(place: &Place, line: u64, what: &str) {
        let report = place.verify();
        let fault = report.fault.clone().expect("nothing was found");
        assert_eq!((fault.file, fault.line), (place.config.file.clone(), line));
        assert!(fault.what.contains(what), "{}", fault.what);
        assert_eq!(report.lines, line - 1);
        assert!(!report.is_sound());
    }

    /// Links the lines anew, as somebody would who can write the file but
    /// does not have the key. Signatures stay as they are.
    fn relink(lines: &mut [String]) {
        let mut previous = "0".repeat(64);
        for line in lines {
            let (text, rest) = line.split_once(HASH_MARK).unwrap();
            let (text, _) = text.split_once(",\"previous\":\"").unwrap();
            let text = format!("{text},\"previous\":\"{previous}\"");
            previous = Hash::of(text.as_bytes()).to_string();
            *line = format!("{text}{HASH_MARK}{previous}{}", &rest[64..]);
        }
    }

    #[test]
    fn a_changed_field_is_found() {
        let place = trail(3);
        place.tamper(|lines| lines[2] = lines[2].replace("ALLOW", "DENY"));
        assert_fault(&place, 3, "do not match its hash");
    }

    #[test]
    fn a_removed_line_is_found() {
        let place = trail(3);
        place.tamper(|lines| drop(lines.remove(2)));
        assert_fault(&place, 3, "line 4 follows line 2");
    }

    #[test]
    fn exchanged_lines_are_found() {
        let place = trail(3);
        place.tamper(|lines| lines.swap(1, 2));
        assert_fault(&place, 2, "line 3 follows line 1");
    }

    #[test]
    fn a_line_of_another_chain_is_found() {
        let (place, other) = (trail(3), trail(3));
        let theirs = fs::read_to_string(&other.config.file).unwrap();
        let theirs = theirs.lines().nth(2).unwrap().to_owned();
        place.tamper(|lines| lines[2] = theirs);
        assert_fault(&place, 3, "does not continue the line before");
    }

    #[test]
    fn a_chain_that_was_computed_anew_is_caught_by_the_next_signature() {
        let place = trail(3);
        place.tamper(|lines| {
            lines[2] = lines[2].replace("ALLOW", "DENY");
            relink(lines);
        });
        assert_fault(&place, 5, "not by this key");
    }

    #[test]
    fn relinking_an_unchanged_trail_changes_nothing() {
        let place = trail(3);
        place.tamper(|lines| relink(lines));
        assert!(place.verify().is_sound());
    }

    #[test]
    fn a_changed_count_is_caught_by_the_sums() {
        let place = trail(3);
        place.tamper(|lines| {
            lines[2] = lines[2].replace("\"count\":1", "\"count\":2");
            relink(lines);
        });
        assert_fault(&place, 3, "its total is 2");
    }

    #[test]
    fn a_checkpoint_must_have_its_signature_and_nothing_else_may() {
        let place = trail(1);
        place.tamper(|lines| {
            let (text, _) = lines[2].split_once(",\"signature\"").unwrap();
            lines[2] = format!("{text}}}");
        });
        assert_fault(&place, 3, "without signature");
        let place = trail(1);
        place.tamper(|lines| {
            let signature = format!("\",\"signature\":\"{}\"}}", "0".repeat(128));
            lines[1] = lines[1].replace("\"}", &signature);
        });
        assert_fault(&place, 2, "no checkpoint");
    }

    #[test]
    fn another_nodes_key_does_not_fit() {
        let place = trail(1);
        let other = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let report = verify_path(&place.config.file, &other).unwrap();
        assert_eq!(report.fault.unwrap().line, 3);
    }

    #[test]
    fn a_signed_checkpoint_that_does_not_reconcile_is_found() {
        let mut place = Place::new();
        place.run(3);
        // What an agent that miscounts would sign.
        let directory = &place.config.key_directory;
        let (key, _) = super::super::key::load_or_create(directory).unwrap();
        place.tamper(|lines| {
            let before = Chain::after(lines[3].as_bytes()).unwrap();
            let (text, _) = lines[4].split_once(HASH_MARK).unwrap();
            let text = text.replace("\"emitted\":3", "\"emitted\":4");
            assert!(text.contains(&before.hash.to_string()));
            let hash = Hash::of(text.as_bytes());
            let signature = ed25519_dalek::Signer::sign(&key, hash.to_string().as_bytes());
            lines[4] = format!("{text}{HASH_MARK}{hash}\",\"signature\":\"{signature:x}\"}}");
        });
        assert_fault(&place, 5, "kernel's decisions is 3");
    }

    #[test]
    fn what_is_no_json_is_found() {
        for (bad, what) in [
            ("", "no record"),
            ("{}", "no record"),
            ("\u{0}\u{0}", "no record"),
            ("[1]", "no record"),
        ] {
            let place = trail(2);
            place.tamper(|lines| lines[1] = bad.to_owned());
            assert_fault(&place, 2, what);
        }
        let place = trail(1);
        fs::write(&place.config.file, vec![b'x'; 2 << 20]).unwrap();
        assert_fault(&place, 1, "too long");
    }

    #[test]
    fn an_unsigned_tail_is_counted() {
        let mut place = trail(2);
        let mut trail = place.open();
        trail.decision(&distinct(1), &names(), false);
        place.kernel.consumed += 1;
        trail.close();
        let report = place.verify();
        assert!(report.is_sound());
        assert_eq!((report.checkpoints, report.unsigned), (1, 2));
        assert!(
            report
                .to_string()
                .contains("2 records after the last signed checkpoint")
        );
    }

    #[test]
    fn a_rotated_set_is_one_chain_and_may_start_in_its_middle() {
        let mut place = Place::new();
        place.config.rotate_bytes = 3000;
        place.config.keep_files = 100;
        place.run(30);
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert_eq!((report.recorded, report.starts_at), (30, None));
        let files = rotate::all_files(&place.config.file).unwrap();
        assert!(files.len() > 4);

        fs::remove_file(&files[0]).unwrap();
        let report = place.verify();
        assert!(report.is_sound(), "{report}");
        assert!(report.starts_at.is_some_and(|line| line > 1));
        assert!(report.recorded < 30);

        fs::remove_file(&files[2]).unwrap();
        let fault = place.verify().fault.unwrap();
        assert_eq!((fault.file, fault.line), (files[3].clone(), 1));
    }

    #[test]
    fn a_torn_line_is_only_natural_at_the_very_end() {
        let mut place = trail(2);
        place.tamper(|lines| lines.push("{\"kind\":\"dec".to_owned()));
        let text = fs::read_to_string(&place.config.file).unwrap();
        fs::write(&place.config.file, text.trim_end()).unwrap();
        let report = place.verify();
        assert!(report.is_sound() && report.torn > 0);

        fs::rename(&place.config.file, numbered(&place.config.file, 1)).unwrap();
        fs::write(&place.config.file, "").unwrap();
        let fault = place.verify().fault.unwrap();
        assert_eq!(fault.what, "it has no line end");
        place.kernel.consumed = 2;
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_byte_of_a_signed_trail_can_be_changed(
            at in any::<prop::sample::Index>(),
            by in 1u8..,
        ) {
            static PLACE: LazyLock<Place> = LazyLock::new(|| trail(3));
            let mut bytes = fs::read(&PLACE.config.file).unwrap();
            let end = bytes.len() - 1;
            bytes[at.index(end)] ^= by;
            let changed = tempfile::NamedTempFile::new().unwrap();
            fs::write(changed.path(), bytes).unwrap();
            let report = verify(&[changed.path().to_owned()], &PLACE.key()).unwrap();
            prop_assert!(report.fault.is_some(), "{}", report);
        }
    }

    #[test]
    fn a_missing_trail_is_an_error() {
        let place = trail(1);
        let missing = place.file(".nothing");
        let error = verify_path(&missing, &place.key()).unwrap_err();
        assert!(error.to_string().contains("cannot open"), "{error}");
    }
}

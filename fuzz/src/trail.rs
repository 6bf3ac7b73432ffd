//! `audit verify`: on any bytes, and on a signed trail that somebody changed.

use std::{io::Write, os::fd::AsRawFd, path::PathBuf, sync::LazyLock};

use ed25519_dalek::SigningKey;
use zt_agent::audit::{
    Cause, KernelTotals, Report,
    chain::{Chain, HASH_MARK, Hash},
    record::{Checkpoint, Content, InFlight, Loss, Start, Time},
    verify,
};

/// Verifies `bytes` as a trail, and a good trail that was changed as they say.
///
/// # Panics
/// When a property does not hold.
pub fn check(bytes: &[u8]) {
    check_trail(bytes);
    check_trail(&changed(&TRAIL, bytes));
}

/// What was signed is still there as it was, whole lines in a row, or the
/// verifier says that it is not.
fn check_trail(bytes: &[u8]) {
    let report = verify_bytes(bytes);
    // Also what it shows to a person is made of anything.
    assert!(!report.to_string().is_empty());
    if !report.is_sound() {
        return;
    }
    let signed = usize::try_from(report.lines - report.unsigned).unwrap_or(usize::MAX);
    let signed: Vec<&[u8]> = lines(bytes).take(signed).collect();
    let original: Vec<&[u8]> = lines(&TRAIL).collect();
    let is_part =
        signed.is_empty() || (original.windows(signed.len())).any(|window| window == signed);
    assert!(is_part, "a changed trail was found sound: {report}");
    if report.starts_at.is_none() && !signed.is_empty() {
        assert!(original.starts_with(&signed), "its beginning is missing");
    }
}

/// Lines without their ends.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n')
}

fn verify_bytes(bytes: &[u8]) -> Report {
    // It has no name: nothing is left of it, however the process ends.
    let mut file = tempfile::tempfile().unwrap_or_else(|error| panic!("{error}"));
    (file.write_all(bytes)).unwrap_or_else(|error| panic!("{error}"));
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let report = verify(&[path], &key().verifying_key());
    let mut report = report.unwrap_or_else(|error| panic!("{error}"));
    for fault in report.fault.iter_mut().chain(&mut report.anomalies) {
        fault.file = PathBuf::new();
    }
    report
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// A trail with a line of every kind but decisions, two epochs, and something
/// unsigned at its end.
static TRAIL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut chain = Chain::default().in_epoch(1);
    let mut trail = Vec::new();
    let mut add = |epoch: u64, content: Content| {
        let chain_of_epoch = chain.in_epoch(epoch);
        let appended = chain_of_epoch.append(&content, &key(), &mut trail);
        chain = appended.unwrap_or_else(|error| panic!("{error}"));
    };
    add(1, start());
    add(1, loss(Cause::Killed, 5));
    add(1, loss(Cause::RingFull, 2));
    add(1, checkpoint(5, 2));
    add(2, start());
    add(2, loss(Cause::SinkSlow, 3));
    add(2, checkpoint(3, 0));
    add(2, loss(Cause::SinkError, 4));
    let report = verify_bytes(&trail);
    assert!(report.is_sound() && report.checkpoints == 2, "{report}");
    trail
});

fn start() -> Content {
    Content::Start(Start {
        kind: "start",
        timestamp: Time(1),
        version: "1.0.0",
        node: "worker-3".to_owned().into(),
        pid: 7,
        kernel: "fresh",
    })
}

fn loss(cause: Cause, count: u64) -> Content {
    Content::Loss(Loss::new(Time(2), cause, count))
}

fn checkpoint(emitted: u64, lost_ring: u64) -> Content {
    Content::Checkpoint(Checkpoint {
        kind: "checkpoint",
        timestamp: Time(3),
        generation: 1,
        kernel: KernelTotals {
            decisions: emitted + lost_ring,
            emitted,
            lost_ring,
            uncounted: 0,
        },
        recorded: 0,
        in_flight: InFlight::default(),
    })
}

/// Changes a trail as somebody could who has no key: four bytes of `script` are
/// one change, the last of them the value to write.
fn changed(trail: &[u8], script: &[u8]) -> Vec<u8> {
    let mut bytes = trail.to_vec();
    for step in script.chunks_exact(4).take(8) {
        let at = usize::from(u16::from_be_bytes([step[1], step[2]]));
        match step[0] % 9 {
            0 => on_byte(&mut bytes, at, |byte| *byte ^= step[3].max(1)),
            1 => bytes.truncate(at),
            2 => bytes.insert(at.min(bytes.len()), step[3]),
            3 => on_lines(&mut bytes, |lines| drop(lines.remove(at % lines.len()))),
            4 => on_lines(&mut bytes, |lines| {
                lines.insert(0, lines[at % lines.len()].clone())
            }),
            5 => on_lines(&mut bytes, |lines| {
                let (first, second) = (at % lines.len(), usize::from(step[3]) % lines.len());
                lines.swap(first, second);
            }),
            6 => on_lines(&mut bytes, |lines| {
                *lines = lines.split_off(at % lines.len())
            }),
            7 => on_lines(&mut bytes, |lines| relink(lines)),
            _ => on_lines(&mut bytes, |lines| {
                let at = at % lines.len();
                lines[at] = hashed(&lines[at]);
            }),
        }
    }
    bytes
}

fn on_byte(bytes: &mut [u8], at: usize, change: impl FnOnce(&mut u8)) {
    let length = bytes.len();
    if let Some(byte) = bytes.get_mut(at % length.max(1)) {
        change(byte);
    }
}

/// Changes whole lines; leaves what has none.
fn on_lines(bytes: &mut Vec<u8>, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let mut lines: Vec<Vec<u8>> = lines(bytes).map(<[u8]>::to_vec).collect();
    let rest = lines.pop().unwrap_or_default();
    if lines.is_empty() {
        return;
    }
    change(&mut lines);
    lines.push(rest);
    *bytes = lines.join(&b'\n');
}

/// A line whose hash fits it again. Its signature stays as it is.
fn hashed(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line).into_owned();
    let parts = text.split_once(HASH_MARK);
    let Some((text, signature)) = parts.and_then(|(text, rest)| Some((text, rest.get(64..)?)))
    else {
        return line.to_vec();
    };
    let hash = Hash::of(text.as_bytes());
    format!("{text}{HASH_MARK}{hash}{signature}").into_bytes()
}

/// Makes the hashes fit again, line by line. Signatures stay as they are.
fn relink(lines: &mut [Vec<u8>]) {
    const PREVIOUS: &str = ",\"previous\":\"";
    let mut previous = "0".repeat(64);
    for line in lines {
        let text = String::from_utf8_lossy(line).into_owned();
        let parts = text
            .split_once(HASH_MARK)
            .and_then(|(text, rest)| Some((text.split_once(PREVIOUS)?.0, rest.get(64..)?)));
        let Some((text, signature)) = parts else {
            return;
        };
        let text = format!("{text}{PREVIOUS}{previous}\"");
        previous = Hash::of(text.as_bytes()).to_string();
        *line = format!("{text}{HASH_MARK}{previous}{signature}").into_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_sound(script: &[u8]) -> bool {
        check(script);
        verify_bytes(&changed(&TRAIL, script)).is_sound()
    }

    #[test]
    fn every_change_of_what_is_signed_is_found() {
        assert!(is_sound(b""));
        let fifth_line: usize = lines(&TRAIL).take(4).map(|line| line.len() + 1).sum();
        let fifth = u16::try_from(fifth_line + 30).unwrap().to_be_bytes();
        let on_fifth = [0, fifth[0], fifth[1], 1];
        let seventh_line_gone = [3, 0, 6, 0];
        for script in [
            &[0, 0, 20, 1][..],
            &[3, 0, 1, 0],
            &[3, 0, 1, 0, 7, 0, 0, 0],
            &[5, 0, 1, 2],
            // A digit of the fifth line, and then its hash.
            &[&on_fifth[..], &[8, 0, 4, 0]].concat(),
            &seventh_line_gone,
        ] {
            assert!(!is_sound(script), "{script:?}");
        }
    }

    #[test]
    fn a_trail_cut_at_its_end_is_a_shorter_trail() {
        let fourth_line_end: usize = lines(&TRAIL).take(4).map(|line| line.len() + 1).sum();
        let at = u16::try_from(fourth_line_end).unwrap().to_be_bytes();
        assert!(is_sound(&[1, at[0], at[1], 0]));
    }

    #[test]
    fn relinking_makes_the_hashes_of_an_unsigned_tail_fit() {
        let tail = u16::try_from(TRAIL.len() - 200).unwrap().to_be_bytes();
        let mut script = vec![2, tail[0], tail[1], b'1'];
        assert!(!is_sound(&script));
        script.extend([7, 0, 0, 0]);
        check(&script);
    }
}

//! The wall clock, and the latest time that it has shown.
//!
//! A deadline is in force as one of the kernel's boot clock, and whenever the
//! wall clock is set, it is put into that clock anew. Set back, a clock would
//! give back what had lapsed before. So the latest time since the machine was
//! switched on is kept: a deadline up to then has lapsed, whatever the clock
//! says now. The file lies in the runtime directory, for the next agent, and
//! says of which boot it is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{atomic, file, node};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the clocks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reading {
    /// `CLOCK_REALTIME` − `CLOCK_BOOTTIME` in nanoseconds.
    pub boot_offset: u64,
    /// `CLOCK_REALTIME` in nanoseconds just before it was set back, of several
    /// times the latest; 0: it never was.
    pub set_back_from: u64,
}

impl Reading {
    /// With the difference of now; `boot_time` is `CLOCK_BOOTTIME` of now.
    fn followed_by(self, boot_offset: u64, boot_time: u64) -> Self {
        let shown = self.boot_offset.saturating_add(boot_time);
        let was_set_back = boot_offset < self.boot_offset;
        Self {
            boot_offset,
            set_back_from: if was_set_back {
                self.set_back_from.max(shown)
            } else {
                self.set_back_from
            },
        }
    }
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    boot_id: String,
    reading: Reading,
}

/// Reads the clocks, and keeps what they said.
#[derive(Debug)]
pub struct Clock {
    path: PathBuf,
    boot_id: String,
    reading: Reading,
}

/// The file of a runtime directory.
#[must_use]
pub fn path(runtime_directory: &Path) -> PathBuf {
    runtime_directory.join("clock.json")
}

/// The clocks of now, after what an agent has kept; nothing is written.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read(runtime_directory: &Path) -> io::Result<Reading> {
    let kept = kept(&path(runtime_directory), &boot_id()?);
    now(kept)
}

impl Clock {
    /// Goes on from what an agent before this one has kept since the machine
    /// was switched on.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn open(runtime_directory: &Path) -> io::Result<Self> {
        let (path, boot_id) = (path(runtime_directory), boot_id()?);
        let known = kept(&path, &boot_id);
        let clock = Self {
            reading: now(known)?,
            path,
            boot_id,
        };
        if known != Some(clock.reading) {
            clock.save();
        }
        Ok(clock)
    }

    /// What was read last.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// Reads the clocks.
    pub fn look(&mut self) -> Reading {
        let known = self.reading;
        // Linux has no such error; without a reading nothing was set.
        self.reading = now(Some(known)).unwrap_or(known);
        if self.reading != known {
            self.save();
        }
        self.reading
    }

    fn save(&self) {
        let kept = Kept {
            boot_id: self.boot_id.clone(),
            reading: self.reading,
        };
        let bytes = serde_json::to_vec(&kept).unwrap_or_default();
        if let Err(error) = atomic::write(&self.path, &bytes) {
            tracing::error!(%error, "if the clock is set back while no agent runs, the next one may take grants that have lapsed for live ones");
        }
    }
}

fn now(known: Option<Reading>) -> io::Result<Reading> {
    let offset = node::boot_offset(known.map(|known| known.boot_offset))?;
    let first = Reading {
        boot_offset: offset,
        set_back_from: 0,
    };
    Ok(known
        .unwrap_or(first)
        .followed_by(offset, node::boot_time()?))
}

/// What the file says of this boot.
fn kept(path: &Path, boot_id: &str) -> Option<Reading> {
    if !path.exists() {
        return None;
    }
    let parse = |bytes: Vec<u8>| serde_json::from_slice::<Kept>(&bytes).map_err(|e| e.to_string());
    let kept = file::read(path)
        .map_err(|error| error.to_string())
        .and_then(parse);
    match kept {
        Ok(kept) => (kept.boot_id == boot_id).then_some(kept.reading),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "nothing is known of what the clock showed before");
            None
        }
    }
}

/// Names the time since the machine was switched on.
///
/// # Errors
/// When the kernel does not say.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn what_a_clock_showed_before_it_was_set_back_is_kept() {
        let right = Reading {
            boot_offset: 100 * HOUR,
            set_back_from: 0,
        };
        let forward = right.followed_by(110 * HOUR, HOUR);
        assert_eq!(
            (forward.boot_offset, forward.set_back_from),
            (110 * HOUR, 0)
        );
        let back = forward.followed_by(100 * HOUR, 2 * HOUR);
        assert_eq!(
            (back.boot_offset, back.set_back_from),
            (100 * HOUR, 112 * HOUR)
        );
        // Less far the second time: the later one counts.
        let once_more = back.followed_by(99 * HOUR, 3 * HOUR);
        assert_eq!(once_more.set_back_from, 112 * HOUR);
        assert_eq!(once_more.followed_by(99 * HOUR, 4 * HOUR), once_more);
    }

    #[test]
    fn the_next_agent_of_the_same_boot_goes_on_from_it() {
        let directory = tempfile::tempdir().unwrap();
        let true_one = Clock::open(directory.path()).unwrap().reading();
        assert_eq!(true_one.set_back_from, 0);
        // The clock was an hour ahead when the last agent looked.
        let kept = |boot_id: &str, hours: u64| {
            let reading = Reading {
                boot_offset: true_one.boot_offset + hours * HOUR,
                set_back_from: 0,
            };
            let boot_id = boot_id.to_owned();
            let bytes = serde_json::to_vec(&Kept { boot_id, reading }).unwrap();
            atomic::write(&path(directory.path()), &bytes).unwrap();
        };
        kept(&boot_id().unwrap(), 1);
        let only_read = read(directory.path()).unwrap();
        let next = Clock::open(directory.path()).unwrap().reading();
        for reading in [only_read, next] {
            let ahead = reading.set_back_from - reading.boot_offset;
            assert!(ahead.abs_diff(node::boot_time().unwrap() + HOUR) < HOUR / 60);
        }
        // And the one after it.
        assert_eq!(Clock::open(directory.path()).unwrap().look(), next);
        kept("another boot", 1);
        assert_eq!(
            Clock::open(directory.path())
                .unwrap()
                .reading()
                .set_back_from,
            0
        );
        fs::write(path(directory.path()), "half").unwrap();
        assert_eq!(
            Clock::open(directory.path())
                .unwrap()
                .reading()
                .set_back_from,
            0
        );
    }
}

//! Whether the API server is followed, from what the watches and a heartbeat
//! meet. Pure.
//!
//! A watch that was interrupted goes on without a word, so silence says
//! nothing: one that failed counts as failing until it tells something, or
//! has not failed again for longer than it waits between two tries.

use std::time::{Duration, Instant, SystemTime};

use crate::resource;

/// The longest wait between two tries of a watch, with its jitter.
pub const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// More than that.
const QUIET: Duration = Duration::from_secs(30);

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watched {
    Pods,
    Nodes,
    Namespaces,
    Services,
    Slices,
    ServiceRanges,
    Policies,
    Groups,
}

impl Watched {
    const COUNT: usize = 8;

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Services => "services",
            Self::Slices => "endpoint slices",
            Self::ServiceRanges => "service CIDRs",
            Self::Policies => "policies",
            Self::Groups => "identity groups",
        }
    }

    /// Of our own definitions.
    #[must_use]
    pub const fn resource(self) -> Option<resource::Kind> {
        match self {
            Self::Policies => Some(resource::Kind::ServiceAccessPolicy),
            Self::Groups => Some(resource::Kind::IdentityGroup),
            _ => None,
        }
    }

    /// What to do where the API server does not know the kind. `None`: every
    /// API server knows it.
    #[must_use]
    pub const fn advice(self) -> Option<&'static str> {
        match self {
            Self::Policies | Self::Groups => Some("apply its definition (deploy/base/crd.yaml)"),
            Self::ServiceRanges => Some(
                "it is older than 1.33: name the range of the Services' addresses in `clusterRanges`",
            ),
            _ => None,
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Health {
    watches: [Option<Failure>; Watched::COUNT],
    heartbeat: Option<String>,
    /// When all was well the last time.
    well: (Instant, SystemTime),
}

#[derive(Clone, Debug)]
struct Failure {
    last: Instant,
    error: String,
}

/// Nothing is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    pub since: SystemTime,
    pub lasting: Duration,
    pub error: String,
}

impl Health {
    #[must_use]
    pub fn new(now: (Instant, SystemTime)) -> Self {
        Self {
            watches: Default::default(),
            heartbeat: Some("no answer yet".to_owned()),
            well: now,
        }
    }

    /// A watch met an error.
    pub fn failed(&mut self, watched: Watched, error: String, now: Instant) {
        self.watches[watched as usize] = Some(Failure { last: now, error });
    }

    /// A watch told something.
    pub fn told(&mut self, watched: Watched) {
        self.watches[watched as usize] = None;
    }

    /// The API server answered, or did not.
    pub fn beat(&mut self, answer: Result<(), String>, now: (Instant, SystemTime)) {
        self.heartbeat = answer.err();
        for watch in &mut self.watches {
            watch.take_if(|failure| now.0.duration_since(failure.last) > QUIET);
        }
        if self.error().is_none() {
            self.well = now;
        }
    }

    fn error(&self) -> Option<&String> {
        let failures = self.watches.iter().flatten();
        (self.heartbeat.as_ref()).or_else(|| failures.map(|failure| &failure.error).next())
    }

    /// `None`: all is well.
    #[must_use]
    pub fn stale(&self, now: Instant) -> Option<Stale> {
        let error = self.error()?.clone();
        Some(Stale {
            since: self.well.1,
            lasting: now.duration_since(self.well.0),
            error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant, SystemTime);

    impl Clock {
        fn at(&self, seconds: u64) -> (Instant, SystemTime) {
            let later = Duration::from_secs(seconds);
            (self.0 + later, self.1 + later)
        }
    }

    fn start() -> (Clock, Health) {
        let clock = Clock(Instant::now(), SystemTime::UNIX_EPOCH);
        let health = Health::new(clock.at(0));
        (clock, health)
    }

    #[test]
    fn it_is_stale_until_the_first_answer_and_since_the_last() {
        let (clock, mut health) = start();
        assert!(health.stale(clock.at(0).0).is_some());
        health.beat(Ok(()), clock.at(1));
        assert_eq!(health.stale(clock.at(1).0), None);
        health.beat(Err("refused".into()), clock.at(11));
        health.beat(Err("refused".into()), clock.at(21));
        let expected = Stale {
            since: clock.at(1).1,
            lasting: Duration::from_secs(24),
            error: "refused".to_owned(),
        };
        assert_eq!(health.stale(clock.at(25).0), Some(expected));
        health.beat(Ok(()), clock.at(31));
        assert_eq!(health.stale(clock.at(31).0), None);
    }

    #[test]
    fn a_watch_that_failed_is_well_when_it_tells_something() {
        let (clock, mut health) = start();
        health.beat(Ok(()), clock.at(0));
        health.failed(Watched::Pods, "forbidden".into(), clock.at(1).0);
        health.beat(Ok(()), clock.at(2));
        assert_eq!(health.stale(clock.at(2).0).unwrap().error, "forbidden");
        assert_eq!(health.stale(clock.at(2).0).unwrap().since, clock.at(0).1);
        health.told(Watched::Nodes);
        assert!(health.stale(clock.at(2).0).is_some(), "another one");
        health.told(Watched::Pods);
        assert_eq!(health.stale(clock.at(2).0), None);
    }

    #[test]
    fn a_watch_that_goes_on_failing_is_never_well_and_one_that_stopped_is() {
        let (clock, mut health) = start();
        let wait = LONGEST_WAIT.as_secs();
        for round in 0..10 {
            health.failed(Watched::Pods, "forbidden".into(), clock.at(round * wait).0);
            health.beat(Ok(()), clock.at(round * wait + wait - 1));
            assert!(health.stale(clock.at(round * wait + wait - 1).0).is_some());
        }
        let later = 10 * wait + QUIET.as_secs() + 1;
        health.beat(Ok(()), clock.at(later));
        assert_eq!(health.stale(clock.at(later).0), None);
    }
}

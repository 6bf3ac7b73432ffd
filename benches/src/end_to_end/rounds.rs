//! Every round runs every contender once, so that what happens to the machine
//! meanwhile happens to all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use zt_tests::interrupt;

use super::{
    contender::{Contender, order},
    hooks::Hooks,
    place::{FORBIDDEN, PORT, Place},
    results::{Results, Rounds, Series, Settings},
    rival::{self, Rival},
    workload::Workload,
};
use crate::quiet::Quiet;

/// How long an answer may take that has to come.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one is waited for that must not come.
const TRIAL: Duration = Duration::from_millis(150);

struct Entrant {
    series: Series,
    rival: Box<dyn Rival>,
}

/// Measures the contenders in `place`. `say` is told what happens.
///
/// # Errors
/// When a contender cannot be put in place, does not decide what it has to, or
/// the traffic stops; and when interrupted.
pub fn run(
    place: &mut Place,
    contenders: &[Contender],
    settings: Settings,
    floor: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Results> {
    let mut entrants = Vec::new();
    for contender in contenders {
        interrupt::check()?;
        say(&format!("prepare {}", contender.title()));
        entrants.push(Entrant::new(*contender, place, floor)?);
    }
    let strangers = Hooks::now(place)?;
    let mut quiet = Quiet::default();
    for round in 0..settings.rounds {
        say(&format!("round {} of {}", round + 1, settings.rounds));
        for index in order(entrants.len(), round) {
            let entrant = &mut entrants[index];
            let turn = entrant.turn(place, settings, &mut quiet, strangers);
            turn.with_context(|| entrant.series.title.clone())?;
        }
    }
    Ok(Results {
        settings,
        quiet,
        contenders: entrants.into_iter().map(|one| one.series).collect(),
    })
}

impl Entrant {
    fn new(contender: Contender, place: &Place, floor: &Path) -> Result<Self> {
        let title = contender.title();
        let rival = rival::make(contender, place, floor).with_context(|| title.clone())?;
        let workloads = Workload::ALL.map(|workload| Rounds {
            workload,
            unit: workload.unit().to_owned(),
            rounds: Vec::new(),
        });
        Ok(Self {
            series: Series {
                contender,
                title,
                entries: rival.entries(),
                workloads: workloads.into(),
            },
            rival,
        })
    }

    fn turn(
        &mut self,
        place: &mut Place,
        settings: Settings,
        quiet: &mut Quiet,
        strangers: Hooks,
    ) -> Result<()> {
        let (rival, series) = (self.rival.as_mut(), &mut self.series);
        let contender = series.contender;
        in_place(rival, contender, place, strangers, |rival, place| {
            for of in &mut series.workloads {
                let warm_up = Duration::from_millis(settings.warm_up_ms);
                place.measure(of.workload, warm_up)?;
                let window = Duration::from_millis(settings.window_ms);
                of.rounds.push(quiet.measure(|| {
                    let measured = place.measure(of.workload, window)?;
                    rival.rest()?;
                    Ok(measured)
                })?);
            }
            Ok(())
        })
    }
}

/// Puts it in place, sees that it decides, and takes it away again whatever came of
/// `measure`. `strangers` were there before everybody.
pub fn in_place<T>(
    rival: &mut dyn Rival,
    contender: Contender,
    place: &mut Place,
    strangers: Hooks,
    measure: impl FnOnce(&mut dyn Rival, &mut Place) -> Result<T>,
) -> Result<T> {
    let expected = strangers.and(rival.hooks());
    let begun = rival.begin(place);
    let measured = begun.and_then(|()| {
        programs(place, expected)?;
        decides(place, contender)?;
        measure(rival, place)
    });
    let ended = rival.end(place).context("take it away");
    let measured = measured.and_then(|measured| ended.map(|()| measured))?;
    programs(place, strangers).context("after it was taken away")?;
    Ok(measured)
}

fn programs(place: &Place, expected: Hooks) -> Result<()> {
    let found = Hooks::now(place)?;
    ensure!(
        found == expected,
        "the kernel has {found:?} programs, not {expected:?}"
    );
    Ok(())
}

/// What is in place has to be what it is called.
fn decides(place: &mut Place, contender: Contender) -> Result<()> {
    let allowed = place.passes(PORT, PATIENCE)?;
    ensure!(
        allowed == [true; 2],
        "what is allowed does not pass (TCP, UDP: {allowed:?})"
    );
    let limit = if contender.denies() { TRIAL } else { PATIENCE };
    let forbidden = place.passes(FORBIDDEN, limit)?;
    ensure!(
        forbidden == [!contender.denies(); 2],
        "what is forbidden is not treated as it has to be (TCP, UDP pass: {forbidden:?})"
    );
    Ok(())
}

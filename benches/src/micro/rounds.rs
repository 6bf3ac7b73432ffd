//! Everything, round by round.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use zt_tests::{interrupt, test_run::Packet};

use super::{
    case::{Case, Program},
    stage::{Question, Stage},
};

const ENTRIES: [u32; 3] = [1, 1_000, 65_536];
const FLOWS: [u32; 3] = [1, 1_000, 65_536];
/// Packets of a case that runs once per packet, in each round.
const BATCH: u32 = 512;
/// Runs of a case that repeats one packet, in each round.
const REPEAT: u32 = 20_000;

/// What one case took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub program: Program,
    pub case: Case,
    /// Rows of the policy map.
    pub entries: usize,
    /// Live flows.
    pub flows: u32,
    /// Of one run: the median of each round.
    pub nanoseconds: Vec<f64>,
}

/// # Errors
/// When a program does not do what is to be measured, and when interrupted.
pub fn run(rounds: usize, floor: &Path, say: &mut dyn FnMut(&str)) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for entries in ENTRIES {
        for flows in FLOWS {
            say(&format!("{entries} entries, {flows} live flows"));
            let stage = Stage::new(entries, floor)?;
            costs.extend(Lab::new(stage, flows)?.measure(rounds)?);
        }
    }
    Ok(costs)
}

struct Lab {
    stage: Stage,
    live: Vec<Question>,
    random: u32,
}

impl Lab {
    fn new(mut stage: Stage, flows: u32) -> Result<Self> {
        let live = stage.live(flows)?;
        Ok(Self {
            stage,
            live,
            random: 0x9e37_79b9,
        })
    }

    fn measure(mut self, rounds: usize) -> Result<Vec<Cost>> {
        let (entries, flows) = (self.stage.entries(), u32::try_from(self.live.len())?);
        let cases = Program::ALL
            .into_iter()
            .flat_map(|program| Case::ALL.map(|case| (program, case)));
        let mut costs: Vec<Cost> = cases
            .map(|(program, case)| Cost {
                program,
                case,
                entries,
                flows,
                nanoseconds: Vec::new(),
            })
            .collect();
        for _ in 0..rounds {
            interrupt::check()?;
            for cost in &mut costs {
                let took = self.take(cost.program, cost.case);
                let title = || format!("{}: {}", cost.program.title(), cost.case.title());
                cost.nanoseconds.push(took.with_context(title)?);
            }
        }
        Ok(costs)
    }

    /// The median of a batch.
    fn take(&mut self, program: Program, case: Case) -> Result<f64> {
        let sends = program.sends();
        let ran = match case {
            Case::EmptyAgain | Case::CachedAgain => {
                let packet = self.live[0].packet(sends, 0);
                self.stage.repeat(program, case, packet, REPEAT)?
            }
            Case::Empty | Case::Minimal | Case::Cached => {
                let flows: Vec<Question> = (0..BATCH).map(|_| self.any()).collect();
                let packets: Vec<Packet> = flows.iter().map(|flow| flow.packet(sends, 0)).collect();
                let before = self.stage.met(flows[0])?;
                let ran = self.stage.run(program, case, &packets)?;
                // It passes everything, also what it did not find.
                ensure!(
                    (self.stage.met(flows[0])? > before) == (case == Case::Minimal),
                    "the minimal program does not look up what it is to"
                );
                ran
            }
            Case::Allowed | Case::Denied => {
                let off = u16::from(case == Case::Denied);
                let fresh = self.stage.fresh(BATCH);
                let packets: Vec<Packet> = fresh
                    .iter()
                    .map(|flow| {
                        if sends {
                            flow.packet(true, off)
                        } else {
                            flow.opening(off)
                        }
                    })
                    .collect();
                self.stage.run(program, case, &packets)?
            }
        };
        self.stage.rest()?;
        let passes = case != Case::Denied;
        ensure!(
            ran.iter()
                .all(|ran| (ran.returned == program.passes()) == passes),
            "the program does not do what is to be measured"
        );
        let mut took: Vec<u32> = ran.iter().map(|ran| ran.nanoseconds).collect();
        took.sort_unstable();
        Ok(f64::from(took[took.len() / 2]))
    }

    /// One of those that live. Marsaglia's xorshift, 32 bits: enough to leave the
    /// CPU's caches behind.
    fn any(&mut self) -> Question {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.live[self.random as usize % self.live.len()]
    }
}

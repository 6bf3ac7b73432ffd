//! What was measured, as it is kept: one JSON file.

use serde::{Deserialize, Serialize};

use super::{contender::Contender, traffic::Measured, workload::Workload};
use crate::{
    quiet::Quiet,
    statistics::{self, Summary},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub settings: Settings,
    pub quiet: Quiet,
    pub contenders: Vec<Series>,
}

/// How it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub rounds: usize,
    /// Of each workload, in each round, for each contender.
    pub window_ms: u64,
    /// The same before it, which is not measured.
    pub warm_up_ms: u64,
}

/// Everything of one contender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub contender: Contender,
    pub title: String,
    /// How many entries, elements or rules it had.
    pub entries: usize,
    pub workloads: Vec<Rounds>,
}

/// One workload, in the order of the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    pub workload: Workload,
    /// Of [`Measured::rate`].
    pub unit: String,
    pub rounds: Vec<Measured>,
}

/// One of the numbers of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    Rate,
    P99,
}

impl Results {
    /// The values of the rounds; none of a contender that did not take part.
    #[must_use]
    pub fn values(&self, contender: Contender, workload: Workload, figure: Figure) -> Vec<f64> {
        let series = self
            .contenders
            .iter()
            .find(|one| one.contender == contender);
        let rounds = series.and_then(|one| one.of(workload));
        let value = |measured: &Measured| match figure {
            Figure::Rate => measured.rate,
            Figure::P99 => measured.p99_us,
        };
        rounds.map_or_else(Vec::new, |of| of.rounds.iter().map(value).collect())
    }

    #[must_use]
    pub fn summary(
        &self,
        contender: Contender,
        workload: Workload,
        figure: Figure,
    ) -> Option<Summary> {
        Summary::of(&self.values(contender, workload, figure))
    }

    /// The ratio of the medians of the rates.
    #[must_use]
    pub fn ratio(&self, of: Contender, base: Contender, workload: Workload) -> Option<f64> {
        let values = |contender| self.values(contender, workload, Figure::Rate);
        statistics::ratio(&values(of), &values(base))
    }

    /// The ratios of the rates in each round.
    #[must_use]
    pub fn paired(&self, of: Contender, base: Contender, workload: Workload) -> Option<Summary> {
        let values = |contender| self.values(contender, workload, Figure::Rate);
        statistics::paired(&values(of), &values(base))
    }
}

impl Series {
    fn of(&self, workload: Workload) -> Option<&Rounds> {
        self.workloads.iter().find(|one| one.workload == workload)
    }
}

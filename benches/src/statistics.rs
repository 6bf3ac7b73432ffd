//! Medians, quartiles and ratios of what the rounds of a benchmark measured.

/// Of a sample: its median and the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Summary {
    /// Nothing of an empty sample, or of one with a value that is no number.
    #[must_use]
    pub fn of(sample: &[f64]) -> Option<Self> {
        if sample.is_empty() || sample.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quarters| quantile(&sorted, quarters, 4);
        Some(Self {
            low: at(1),
            median: at(2),
            high: at(3),
        })
    }
}

/// The ratio of two medians.
#[must_use]
pub fn ratio(of: &[f64], base: &[f64]) -> Option<f64> {
    let (of, base) = (Summary::of(of)?.median, Summary::of(base)?.median);
    (base != 0.0).then(|| of / base)
}

/// The ratios round by round: how far apart their quartiles are says how much
/// of [`ratio`] is noise. Nothing if they are not of the same rounds.
#[must_use]
pub fn paired(of: &[f64], base: &[f64]) -> Option<Summary> {
    if of.len() != base.len() {
        return None;
    }
    let ratios: Vec<f64> = of.iter().zip(base).map(|(of, base)| of / base).collect();
    Summary::of(&ratios)
}

/// The value below which `part` of `parts` of a sorted sample lie, by the
/// nearest rank: for many values. 0 of none.
#[must_use]
pub fn percentile(sorted: &[u32], part: usize, parts: usize) -> u32 {
    let rank = (sorted.len() * part).div_ceil(parts);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Of a few values: between the two nearest, in proportion (Hyndman and Fan's
/// definition 7, what spreadsheets have).
fn quantile(sorted: &[f64], part: usize, parts: usize) -> f64 {
    let steps = (sorted.len() - 1) * part;
    let (index, rest) = (steps / parts, steps % parts);
    let here = sorted[index];
    let next = sorted[(index + 1).min(sorted.len() - 1)];
    here + (next - here) * small(rest) / small(parts)
}

/// Exact: what is asked for is less than the number of parts.
fn small(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(low: f64, median: f64, high: f64) -> Option<Summary> {
        Some(Summary { low, median, high })
    }

    #[test]
    fn quartiles_lie_between_the_nearest_values() {
        assert_eq!(Summary::of(&[7.0]), summary(7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[2.0, 1.0]), summary(1.25, 1.5, 1.75));
        assert_eq!(
            Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]),
            summary(2.0, 3.0, 4.0)
        );
        assert_eq!(Summary::of(&[1.0, 2.0, 3.0, 4.0]), summary(1.75, 2.5, 3.25));
    }

    #[test]
    fn nothing_is_said_of_no_sample_and_of_what_is_no_number() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(ratio(&[1.0], &[]), None);
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn a_ratio_is_one_of_medians_and_not_of_means() {
        assert_eq!(ratio(&[1.0, 2.0, 90.0], &[4.0, 1.0, 70.0]), Some(0.5));
    }

    #[test]
    fn rounds_are_compared_with_their_own() {
        // Everything twice as fast in the second round, and the ratio the same.
        assert_eq!(paired(&[9.0, 18.0], &[10.0, 20.0]), summary(0.9, 0.9, 0.9));
        assert_eq!(paired(&[9.0], &[10.0, 20.0]), None);
        assert_eq!(paired(&[9.0], &[0.0]), None);
    }

    #[test]
    fn a_percentile_is_a_value_of_the_sample() {
        let sorted: Vec<u32> = (1..=200).collect();
        assert_eq!(percentile(&sorted, 99, 100), 198);
        assert_eq!(percentile(&sorted, 1, 2), 100);
        assert_eq!(percentile(&[5], 99, 100), 5);
        assert_eq!(percentile(&[], 99, 100), 0);
    }
}

//! Destination ports of a target.

use std::ops::RangeInclusive;

use super::{
    field::{Field, all},
    yaml::Value,
};
use crate::model::Ports;

/// `any`, or a list of ports and ranges.
pub fn ports(field: &Field<'_>) -> Option<Ports> {
    if field.is_text("any") {
        return Some(Ports::Any);
    }
    let Value::List(list) = field.value() else {
        return field.refuse(
            "must be `any` or a list of ports",
            "write it like [5432, \"8000-8010\"]",
        );
    };
    if list.is_empty() {
        return field.refuse(
            "an empty list of ports selects nothing",
            "write `any` or remove the target",
        );
    }
    let ranges = all(field.elements()?.iter().map(range))?;
    Some(Ports::Ranges(merge(ranges)))
}

fn range(field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    match field.value() {
        Value::Whole(number) => number_of_port(field, *number).map(|port| port..=port),
        Value::Text(text) if text == "any" => {
            field.refuse("`any` cannot stand in a list", "write `ports: any`")
        }
        Value::Text(text) => range_of_text(field, text),
        _ => bad_port(field, "this"),
    }
}

fn range_of_text(field: &Field<'_>, text: &str) -> Option<RangeInclusive<u16>> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (
        port_of_text(field, text, low)?,
        port_of_text(field, text, high)?,
    );
    if low > high {
        return field.refuse(
            format!("the range {text:?} is reversed"),
            format!("write \"{high}-{low}\""),
        );
    }
    Some(low..=high)
}

fn port_of_text(field: &Field<'_>, whole: &str, part: &str) -> Option<u16> {
    let part = part.trim();
    // `parse` alone would accept "+80".
    if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
        return bad_port(field, &format!("{whole:?}"));
    }
    // What does not fit is too large, as in `number_of_port`.
    number_of_port(field, part.parse().unwrap_or(u64::MAX))
}

fn bad_port<T>(field: &Field<'_>, what: &str) -> Option<T> {
    field.refuse(
        format!("{what} is no port"),
        "write a number from 1 to 65535, or a range like \"8000-8010\"",
    )
}

/// A port that a rule or a workload can name.
pub fn number_of_port(field: &Field<'_>, number: u64) -> Option<u16> {
    match u16::try_from(number) {
        Ok(0) => field.refuse("there is no port 0", "ports are 1 to 65535"),
        Ok(port) => Some(port),
        Err(_) => field.refuse("the highest port is 65535", ""),
    }
}

/// Sorted and disjoint: ranges that overlap or touch become one.
fn merge(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.sort_unstable_by_key(|range| (*range.start(), *range.end()));
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        assert_eq!(
            merge(vec![
                10..=20,
                1..=1,
                15..=30,
                31..=40,
                65535..=65535,
                65000..=65534,
                2..=3
            ]),
            [1..=3, 10..=40, 65000..=65535]
        );
    }
}

//! What is in a program and everything that it calls.

use std::collections::BTreeSet;

use anyhow::Result;

use super::table::Counts;
use crate::bytecode::{Object, Place};

/// Counts over all functions that a program reaches, each once.
pub fn count(object: &Object, program: Place) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut known = BTreeSet::new();
    let mut ahead = vec![program];
    while let Some(place) = ahead.pop() {
        if !known.insert(place) {
            continue;
        }
        let function = object.function(place)?;
        for (slot, instruction) in function.instructions() {
            counts.instructions += 1;
            if let Some(number) = instruction.helper() {
                counts.add_call(number);
            }
            ahead.extend(function.callee(slot));
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bytecode::code;
    use crate::bytecode::tests::{HERE, function, slot};

    #[test]
    fn a_function_that_is_called_twice_counts_once() {
        let call = |more| slot(code::CALL, 0, code::PSEUDO_CALL, 0, more);
        let helper = |number| slot(code::CALL, 0, 0, 0, number);
        let program = function(&[call(2), call(1), helper(5)]);
        let callee = function(&[helper(1), helper(107), slot(code::EXIT, 0, 0, 0, 0)]);
        let other = function(&[helper(1)]);
        let places = [(HERE, 0), (HERE, 24), (HERE, 48)];
        let functions = places.into_iter().zip([program, callee, other]);
        let object = Object {
            functions: functions.collect(),
            data: BTreeMap::new(),
        };
        let expected = Counts {
            instructions: 6,
            helpers: 3,
            lookups: 2,
        };
        assert_eq!(count(&object, (HERE, 0)).unwrap(), expected);
    }
}

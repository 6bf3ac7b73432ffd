//! The words of a policy, for those that describe its form to others: the tables
//! that the parser itself reads by.

pub use super::{metadata::NAME_LEN, selector::KINDS};
use super::{policy, rule, selector};

/// The mode of a policy that names none.
pub const DEFAULT_MODE: &str = "enforce";

#[must_use]
pub fn modes() -> Vec<&'static str> {
    policy::MODES.map(|(word, _)| word).into()
}

#[must_use]
pub fn actions() -> Vec<&'static str> {
    rule::ACTIONS.map(|(word, _)| word).into()
}

#[must_use]
pub fn protocols() -> Vec<&'static str> {
    rule::PROTOCOLS.map(|(word, _)| word).into()
}

/// The reserved identities that a rule can name.
#[must_use]
pub fn reserved() -> Vec<&'static str> {
    selector::names(&selector::NAMEABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{SourceFile, policy::parse};
    use crate::model::PolicyMode;

    #[test]
    fn the_default_mode_is_the_one_that_a_policy_without_a_mode_has() {
        let text = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: p}\nspec: {rules: []}\n";
        let policies = parse(&[SourceFile::new("f", text)]).unwrap();
        let default = policy::MODES.iter().find(|(word, _)| *word == DEFAULT_MODE);
        assert_eq!(default.map(|(_, mode)| *mode), Some(policies[0].mode));
        assert_eq!(policies[0].mode, PolicyMode::Enforce);
    }
}

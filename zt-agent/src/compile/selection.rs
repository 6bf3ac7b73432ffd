//! Whom a selector means, as numbers.

use std::collections::BTreeMap;

use ipnet::IpNet;
use zt_common::identity::{self, Number};

use super::{
    CompileError,
    needs::{identities, services},
    network::canonical,
    territory::Territory,
};
use crate::model::{
    Name, NodeModel, Numbers, Party, RuleAction, Selector, Service, SpiffeId, SpiffePattern,
};

/// Everything that can be selected, with its number.
pub struct Selection<'a> {
    territory: &'a Territory,
    /// Sorted by text, so that what a pattern can match stands together.
    spiffe: BTreeMap<&'a str, (&'a SpiffeId, Number)>,
    classes: BTreeMap<IpNet, Number>,
    services: BTreeMap<&'a Service, Number>,
}

impl<'a> Selection<'a> {
    /// # Errors
    /// When something has no number.
    pub fn index(
        model: &'a NodeModel,
        territory: &'a Territory,
        numbers: &Numbers,
    ) -> Result<Self, CompileError> {
        let number = |name: Name| numbers.get(&name).ok_or(CompileError::UnnumberedName(name));
        Ok(Self {
            territory,
            spiffe: identities(model)
                .into_iter()
                .map(|id| Ok((id.as_str(), (id, number(Name::Spiffe(id.clone()))?))))
                .collect::<Result<_, _>>()?,
            classes: territory
                .classes()
                .iter()
                .map(|net| Ok((*net, number(Name::Class(*net))?)))
                .collect::<Result<_, _>>()?,
            services: services(model)
                .into_iter()
                .map(|service| Ok((&**service, number(Name::Service(service.clone()))?)))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The numbers that `selector` means in a rule that allows or denies.
    ///
    /// # Errors
    /// When it names a reserved identity that cannot be named.
    pub fn resolve(
        &self,
        selector: &Selector,
        action: RuleAction,
    ) -> Result<Vec<Number>, CompileError> {
        match selector {
            Selector::Spiffe(pattern) => Ok(self.matching(pattern)),
            Selector::Cidr(net) => {
                let reached = self.territory.reached(canonical(*net), action);
                reached.map(|class| self.class(class)).collect()
            }
            Selector::Reserved(number) => self.reserved(*number, action),
        }
    }

    fn reserved(&self, number: Number, action: RuleAction) -> Result<Vec<Number>, CompileError> {
        let mut found = vec![nameable(number)?];
        if number == identity::WORLD && action == RuleAction::Allow {
            for class in self.territory.world() {
                found.push(self.class(class)?);
            }
        }
        Ok(found)
    }

    fn matching(&self, pattern: &SpiffePattern) -> Vec<Number> {
        let text = pattern.as_str();
        let Some((literal, _)) = text.split_once('*') else {
            return self
                .spiffe
                .get(text)
                .map(|(_, number)| *number)
                .into_iter()
                .collect();
        };
        self.spiffe
            .range(literal..)
            .take_while(|(id, _)| id.starts_with(literal))
            .filter(|(_, (id, _))| pattern.matches(id))
            .map(|(_, (_, number))| *number)
            .collect()
    }

    /// The number of a class of the territory.
    ///
    /// # Errors
    /// When it has none.
    pub fn class(&self, net: IpNet) -> Result<Number, CompileError> {
        let number = self.classes.get(&net).copied();
        number.ok_or(CompileError::UnnumberedName(Name::Class(net)))
    }

    /// The number of the class whose denies apply to a known end in `net`; 0
    /// if none do.
    ///
    /// # Errors
    /// When the class has no number.
    pub fn denying_class(&self, net: IpNet) -> Result<Number, CompileError> {
        let class = self.territory.denying_class_of(net);
        class.map_or(Ok(0), |class| self.class(class))
    }

    /// The number of a SPIFFE ID of the model.
    ///
    /// # Errors
    /// When it has none.
    pub fn identity(&self, id: &SpiffeId) -> Result<Number, CompileError> {
        self.spiffe
            .get(id.as_str())
            .map(|(_, number)| *number)
            .ok_or_else(|| CompileError::UnnumberedName(Name::Spiffe(id.clone())))
    }

    /// The number of a party.
    ///
    /// # Errors
    /// When it has none, or is a reserved identity that nothing is said to be.
    pub fn party(&self, party: &Party) -> Result<Number, CompileError> {
        match party {
            Party::Workload(id) => self.identity(id),
            // What is known to be nobody's, such as a Service's port without a
            // backend.
            Party::Reserved(identity::UNKNOWN_PEER) => Ok(identity::UNKNOWN_PEER),
            Party::Reserved(number) => nameable(*number),
            Party::Service(service) => {
                let number = self.services.get(&**service).copied();
                let unnumbered = || CompileError::UnnumberedName(Name::Service(service.clone()));
                number.ok_or_else(unnumbered)
            }
        }
    }
}

/// A reserved identity that a document may name.
fn nameable(number: Number) -> Result<Number, CompileError> {
    match number {
        identity::HOST
        | identity::NODES
        | identity::APISERVER
        | identity::WORLD
        | identity::MASQUERADED => Ok(number),
        _ => Err(CompileError::Unnameable(number)),
    }
}

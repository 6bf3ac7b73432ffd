//! What Services with several parties behind a port may have at most.
//!
//! Whoever may write Services can make as many of them, and of as many
//! compositions, as he likes. Nobody else shall want for it.

use std::collections::BTreeSet;

use zt_common::address::AddressKey;

use super::{Lack, Limits, TableFull, address, needs::services};
use crate::model::{Endpoint, NodeModel, Party, names::SERVICE_LIMIT};

/// Of the policy map and of the address map this part.
pub const SHARE: usize = 4;

/// Whether they have no more than their share of the address map and of the
/// numbers. (Of the policy map it is what [`super::services`] adds.)
///
/// # Errors
/// What they have too much of.
pub fn check(model: &NodeModel, limits: &Limits) -> Result<(), Lack> {
    let (wanted, limit) = (services(model).len(), SERVICE_LIMIT as usize);
    if wanted > limit {
        return Err(Lack::Services { wanted, limit });
    }
    let rows = rows(&model.endpoints);
    if rows > limits.address / SHARE {
        let wanted = rows.saturating_mul(SHARE);
        return Err(TableFull::address(wanted, limits.address).into());
    }
    Ok(())
}

/// Rows of the address map that are for their claims.
pub fn rows(claims: &[Endpoint]) -> usize {
    let theirs = claims.iter().filter(|claim| is_service(&claim.party));
    let keys = theirs.flat_map(|claim| address::keys(claim.ip, std::slice::from_ref(claim)));
    keys.collect::<BTreeSet<AddressKey>>().len()
}

const fn is_service(party: &Party) -> bool {
    matches!(party, Party::Service(_))
}

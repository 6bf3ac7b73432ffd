//! socket(2): remember whose it is; refuse raw sockets.

use aya_ebpf::programs::SockContext;
use zt_common::{
    address::{Workload, workload_flags},
    codes::{Direction, Hook, Reason},
    flow::Owner,
    identity,
    state::Control,
    verdict::Judgement,
    version::Generation,
};

use crate::{
    case::Case,
    decide::{apply, generations, now},
    owner::{self, field},
    record, rows,
};

const PASS: bool = true;
const DENY: bool = false;
const SOCK_RAW: u32 = 3;

#[inline(always)]
pub fn create(ctx: &SockContext) -> bool {
    let Some(control) = owner::control() else {
        return DENY;
    };
    let mut made = Owner::default();
    owner::of_current(ctx.sock.cast(), control.root_level, &mut made);
    if let Some(stored) = owner::storage(ctx.sock.cast(), true) {
        stored.owner = made;
    }
    if field!((*ctx.sock).type_) != SOCK_RAW {
        return PASS;
    }
    raw(ctx, control, &made)
}

/// A raw socket needs a grant; one without is a decision and is recorded.
#[inline(always)]
fn raw(ctx: &SockContext, control: &Control, made: &Owner) -> bool {
    let (generation, _) = generations(control);
    let mut local = Workload::default();
    let cgroup = owner::zt_local(made, generation, &raw mut local);
    if local.flags & workload_flags::RAW != 0 && !rows::quarantined(local.identity) {
        return PASS;
    }
    let mut case = Case::new(Hook::SockCreate, Direction::Egress);
    case.start = now();
    case.protocol = field!((*ctx.sock).protocol) as u8;
    case.cgroup = cgroup;
    case.cached.generation = generation;
    case.cached.source = local.identity;
    case.cached.destination = identity::NOBODY;
    let judgement = judge(&local, generation);
    apply(&mut case, Direction::Egress, &judgement);
    record::zt_record(&raw const case);
    judgement.passes()
}

#[inline(always)]
fn judge(local: &Workload, generation: Generation) -> Judgement {
    let enforce = local.flags & workload_flags::ENFORCE != 0;
    if generation == 0 {
        Judgement::denied(Reason::NotReady, true)
    } else if rows::quarantined(local.identity) {
        Judgement::denied(Reason::Quarantined, true)
    } else if local.identity == identity::UNENROLLED {
        Judgement::denied(Reason::Unenrolled, enforce)
    } else {
        Judgement::denied(Reason::RawSocket, enforce)
    }
}

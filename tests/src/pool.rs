//! Nodes that go from one test of a process to the next: to load the programs
//! takes longer than most tests. What was attached is detached, and the maps are
//! emptied; cgroups, namespaces and notes on disk are each test's own.
//!
//! For a test that is about loading, about the maps themselves, or that alters
//! what is pinned, there is [`Node::new`].

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, Once, PoisonError},
};

use anyhow::Result;

use crate::{Sandbox, cgroup::Cgroup, node::Node};

static IDLE: Mutex<Vec<Place>> = Mutex::new(Vec::new());

/// A node, and where its maps are.
struct Place {
    node: Node,
    // Dropped after the node.
    _home: Sandbox,
}

impl Place {
    fn new() -> Result<Self> {
        let home = Sandbox::new()?;
        let node = Node::new(&home)?;
        Ok(Self { node, _home: home })
    }
}

/// A node for as long as a test takes.
pub struct Lease(Option<Place>);

impl Lease {
    /// A node as [`Node::new`] makes it.
    pub fn take(sandbox: &Sandbox) -> Result<Self> {
        Self::below(sandbox, sandbox.cgroup())
    }

    /// A node as [`Node::below`] makes it.
    pub fn below(sandbox: &Sandbox, managed: &Cgroup) -> Result<Self> {
        static AT_EXIT: Once = Once::new();
        // SAFETY: the function takes from a static and cleans up.
        AT_EXIT.call_once(|| assert_eq!(unsafe { libc::atexit(clear) }, 0));
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut place = idle.map_or_else(Place::new, Ok)?;
        place.node.renew(sandbox, managed)?;
        Ok(Self(Some(place)))
    }
}

/// The node of a test that failed is not used again.
impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut place) = self.0.take() else {
            return;
        };
        let released = place.node.release();
        if released.is_ok() && !std::thread::panicking() {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(place);
        }
    }
}

impl Deref for Lease {
    type Target = Node;

    fn deref(&self) -> &Node {
        let place = self.0.as_ref();
        &place.expect("only a drop takes it").node
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Node {
        let place = self.0.as_mut();
        &mut place.expect("only a drop takes it").node
    }
}

/// At the end of the process, which drops no static.
extern "C" fn clear() {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.clear();
}

//! Nodes that go from one row to the next: to load the programs takes longer
//! than a row. What was attached is detached, and what was remembered forgotten;
//! cgroups, namespaces and identities are each row's own.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, Once, PoisonError},
};

use zt_tests::{Sandbox, node::Node};

static IDLE: Mutex<Vec<Place>> = Mutex::new(Vec::new());

/// A node, and where its maps are.
struct Place {
    node: Node,
    // Dropped after the node.
    _home: Sandbox,
}

/// A node for as long as a row takes.
pub struct Lease(Option<Place>);

impl Lease {
    /// A node that governs `sandbox`, with nothing attached.
    pub fn take(sandbox: &Sandbox) -> Self {
        static AT_EXIT: Once = Once::new();
        // SAFETY: the function takes from a static and cleans up.
        AT_EXIT.call_once(|| assert_eq!(unsafe { libc::atexit(clear) }, 0));
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut place = idle.unwrap_or_else(|| {
            let home = Sandbox::new().unwrap();
            let node = Node::new(&home).unwrap();
            Place { node, _home: home }
        });
        place.node.govern(sandbox).unwrap();
        Self(Some(place))
    }
}

/// A node whose row failed is not used again.
impl Drop for Lease {
    fn drop(&mut self) {
        let Some(place) = self.0.take() else { return };
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
        &self.0.as_ref().unwrap().node
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Node {
        &mut self.0.as_mut().unwrap().node
    }
}

/// At the end of the process, which drops no static.
extern "C" fn clear() {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.clear();
}

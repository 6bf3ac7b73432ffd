//! The objects of one kind, from what a watch tells. Pure.
//!
//! A watch may tell things twice, late or in another order than they
//! happened. Of each object the newest version counts, and one that was
//! deleted never comes back: its UID is nobody else's.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::objects::{Object, Uid};

/// Deleted objects that are remembered. What comes after more deletions than
/// these is not late but wrong, and the next list puts it right.
const REMEMBERED: usize = 16_384;

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// Added or modified.
    Applied(T),
    Deleted(Uid),
    /// A list of all objects begins. What was known stays until it is done.
    Listing,
    Listed(T),
    /// What was not listed is gone.
    ListDone,
}

/// All objects of a kind.
#[derive(Clone, Debug)]
pub struct Table<T> {
    known: BTreeMap<Uid, T>,
    gone: Gone,
    /// While a list is told: what was on it so far.
    listed: Option<BTreeSet<Uid>>,
    complete: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            gone: Gone::default(),
            listed: None,
            complete: false,
        }
    }
}

impl<T: Object> Table<T> {
    /// Whether there was a whole list.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// In the order of their UIDs.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.known.values()
    }

    /// Whether there was such an object, and it was deleted not long ago.
    pub fn was_deleted(&self, uid: Uid) -> bool {
        self.gone.contains(uid)
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// `true`: something is known now that was not.
    pub fn apply(&mut self, change: Change<T>) -> bool {
        match change {
            Change::Applied(object) => self.put(object),
            Change::Deleted(uid) => self.delete(uid),
            Change::Listing => {
                self.listed = Some(BTreeSet::new());
                false
            }
            Change::Listed(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(object.uid());
                }
                self.put(object)
            }
            Change::ListDone => self.finish(),
        }
    }

    fn put(&mut self, object: T) -> bool {
        let uid = object.uid();
        if self.gone.contains(uid) {
            return false;
        }
        match self.known.get(&uid) {
            Some(known) if object.version().is_before(known.version()) => false,
            Some(known) => {
                let news = !object.says_the_same(known);
                self.known.insert(uid, object);
                news
            }
            None => self.known.insert(uid, object).is_none(),
        }
    }

    fn delete(&mut self, uid: Uid) -> bool {
        self.gone.insert(uid);
        self.known.remove(&uid).is_some()
    }

    fn finish(&mut self) -> bool {
        let Some(listed) = self.listed.take() else {
            return false;
        };
        let before = self.known.len();
        self.known.retain(|uid, _| listed.contains(uid));
        let first = !std::mem::replace(&mut self.complete, true);
        first || self.known.len() != before
    }
}

/// The UIDs of what was deleted, the oldest first.
#[derive(Clone, Debug, Default)]
struct Gone {
    order: VecDeque<Uid>,
    all: HashSet<Uid>,
}

impl Gone {
    fn contains(&self, uid: Uid) -> bool {
        self.all.contains(&uid)
    }

    fn insert(&mut self, uid: Uid) {
        if !self.all.insert(uid) {
            return;
        }
        self.order.push_back(uid);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::objects::Version, *};

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Thing(u128, u64, &'static str);

    impl Object for Thing {
        fn uid(&self) -> Uid {
            Uid::new(self.0)
        }

        fn version(&self) -> Version {
            Version::new(&self.1.to_string())
        }

        fn says_the_same(&self, other: &Self) -> bool {
            self.2 == other.2
        }
    }

    fn texts(table: &Table<Thing>) -> Vec<&'static str> {
        table.iter().map(|thing| thing.2).collect()
    }

    fn deleted(uid: u128) -> Change<Thing> {
        Change::Deleted(Uid::new(uid))
    }

    #[test]
    fn of_one_object_the_newest_version_counts_whenever_it_comes() {
        let mut table = Table::default();
        assert!(table.apply(Change::Applied(Thing(1, 5, "new"))));
        assert!(!table.apply(Change::Applied(Thing(1, 3, "old"))));
        assert!(!table.apply(Change::Applied(Thing(1, 5, "new"))));
        assert_eq!(texts(&table), ["new"]);
        assert!(
            !table.apply(Change::Applied(Thing(1, 6, "new"))),
            "nothing new in it"
        );
        assert!(table.apply(Change::Applied(Thing(1, 7, "newer"))));
        assert_eq!(texts(&table), ["newer"]);
    }

    #[test]
    fn what_was_deleted_never_comes_back() {
        let mut table = Table::default();
        assert!(!table.apply(deleted(1)));
        assert!(!table.apply(Change::Applied(Thing(1, 5, "late"))));
        assert!(!table.apply(Change::Listed(Thing(1, 5, "late"))));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_list_replaces_what_was_known_only_when_it_is_whole() {
        let mut table = Table::default();
        table.apply(Change::Applied(Thing(1, 1, "a")));
        table.apply(Change::Applied(Thing(2, 2, "b")));
        assert!(!table.is_complete());
        table.apply(Change::Listing);
        table.apply(Change::Listed(Thing(2, 3, "c")));
        assert_eq!(texts(&table), ["a", "c"]);
        // It broke off and begins again.
        table.apply(Change::Listing);
        table.apply(Change::Listed(Thing(3, 4, "d")));
        assert!(table.apply(Change::ListDone));
        assert_eq!(texts(&table), ["d"]);
        assert!(table.is_complete());
        assert!(!table.apply(Change::ListDone), "of no list");
        assert_eq!(texts(&table), ["d"]);
    }

    #[test]
    fn the_memory_of_what_is_gone_is_bounded() {
        let mut table: Table<Thing> = Table::default();
        for uid in 0..=REMEMBERED as u128 {
            table.apply(deleted(uid));
        }
        assert_eq!(table.gone.order.len(), REMEMBERED);
        assert!(!table.gone.contains(Uid::new(0)));
        assert!(table.gone.contains(Uid::new(1)));
    }
}

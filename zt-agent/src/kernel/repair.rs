//! What somebody altered behind the agent's back, and the agent put right.

/// Kinds of repairs, as metrics and `status` name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The control element did not hold what was written.
    Control,
    /// Rows of a versioned map meant something else.
    Rows,
    /// Somebody was let out of quarantine in the kernel only.
    Quarantine,
    /// Names of numbers were altered.
    Names,
    /// A map's pin was gone, or led to something else.
    MapPin,
    /// The same of a link.
    LinkPin,
    /// A link was detached, or a program taken off an interface.
    Link,
    /// Another program was put behind a link.
    Program,
}

impl What {
    pub const ALL: [Self; 8] = [
        Self::Control,
        Self::Rows,
        Self::Quarantine,
        Self::Names,
        Self::MapPin,
        Self::LinkPin,
        Self::Link,
        Self::Program,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Rows => "rows",
            Self::Quarantine => "quarantine",
            Self::Names => "names",
            Self::MapPin => "map-pin",
            Self::LinkPin => "link-pin",
            Self::Link => "link",
            Self::Program => "program",
        }
    }
}

/// Something that was put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    pub what: What,
    /// For a person: what was found.
    pub found: String,
}

impl Repair {
    #[must_use]
    pub fn new(what: What, found: impl Into<String>) -> Self {
        let found = found.into();
        Self { what, found }
    }
}

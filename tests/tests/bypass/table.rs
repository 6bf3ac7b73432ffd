//! The table of what was tried, by whom it was stopped, and what the caller saw.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    sync::{Mutex, Once},
};

/// How one row went.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was not finished: the test failed.
    Failed,
    /// The kernel lacks what it needs; the call that said so, and its errno.
    Skipped(String),
    /// Everything was as expected.
    Done(Done),
}

/// The cells of a row that is done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub detached: String,
    pub sockets: String,
    pub interface: String,
    pub allowed: String,
}

/// Where a row stands in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(usize, usize);

static TABLE: Mutex<BTreeMap<Place, (&'static str, Outcome)>> = Mutex::new(BTreeMap::new());

/// The themes in the order of the table: the last part of a module's path.
const THEMES: &[&str] = &[
    "calls",
    "earlier",
    "places",
    "strangers",
    "raw",
    "frames",
    "spoofed",
    "neighbours",
    "fragments",
    "headers",
    "icmp",
    "inwards",
];

/// The place of a test among the tests of a module.
pub fn place(module: &str, tests: &[&str], test: &str) -> Place {
    let theme = module.rsplit("::").next().unwrap_or_default();
    let theme = THEMES.iter().position(|name| *name == theme);
    let row = tests.iter().position(|name| *name == test);
    Place(
        theme.expect("the theme is in the list"),
        row.expect("the test is in the list"),
    )
}

/// A row that failed unless it says otherwise.
pub struct Entry {
    place: Place,
    name: &'static str,
}

impl Entry {
    pub fn begin(place: Place, name: &'static str) -> Self {
        static AT_EXIT: Once = Once::new();
        // SAFETY: the function only reads a static and writes to files.
        AT_EXIT.call_once(|| assert_eq!(unsafe { libc::atexit(print) }, 0));
        let entry = Self { place, name };
        entry.put(Outcome::Failed);
        entry
    }

    pub fn skipped(self, why: String) {
        self.put(Outcome::Skipped(why));
    }

    pub fn done(self, done: Done) {
        self.put(Outcome::Done(done));
    }

    fn put(&self, outcome: Outcome) {
        let mut table = TABLE.lock().unwrap_or_else(|error| error.into_inner());
        table.insert(self.place.clone(), (self.name, outcome));
    }
}

/// Prints when the process ends: no test knows that it is the last one.
extern "C" fn print() {
    let table = TABLE.lock().unwrap_or_else(|error| error.into_inner());
    let text = markdown(&table);
    // Not by `print!`, which the test harness captures.
    let _ = std::io::stderr().write_all(text.as_bytes());
    if let Some(path) = std::env::var_os("ZT_TABLE")
        && let Err(error) = std::fs::write(&path, &text)
    {
        eprintln!("{}: {error}", path.display());
    }
}

fn markdown(table: &BTreeMap<Place, (&'static str, Outcome)>) -> String {
    let mut text = String::from(
        "\n| what is tried | detached | socket layers | interface layer alone | passes |\n\
         |---|---|---|---|---|\n",
    );
    for (name, outcome) in table.values() {
        let cells = match outcome {
            Outcome::Failed => "**failed** | | | ".to_owned(),
            Outcome::Skipped(why) => format!("*skipped: {why}* | | | "),
            Outcome::Done(done) => [
                &*done.detached,
                &*done.sockets,
                &*done.interface,
                &*done.allowed,
            ]
            .join(" | "),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {name} | {cells} |");
    }
    text
}

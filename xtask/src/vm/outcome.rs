//! What became of the suite on one kernel.

use std::collections::BTreeMap;

use zt_tests::guest::{Message, Outcome, Programs, Test};

use super::machine::End;

/// Everything that a machine said, and how it ended.
#[derive(Debug, Default)]
pub struct Run {
    /// Such as `6.1`.
    pub series: String,
    /// The package's version.
    pub version: String,
    pub programs: Option<Programs>,
    /// Test names by binary.
    pub planned: BTreeMap<String, Vec<String>>,
    pub tests: Vec<Test>,
    pub problems: Vec<String>,
    pub seconds: f64,
}

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    pub ignored: u64,
    pub seconds: f64,
}

impl Run {
    pub fn hear(&mut self, message: Message) {
        match message {
            Message::Booted { .. } | Message::Done => {}
            Message::Programs(programs) => self.programs = Some(programs),
            Message::Planned { binary, tests } => {
                self.planned.insert(binary, tests);
            }
            Message::Test(test) => self.tests.push(test),
            Message::Output { binary, name, text } => self.add_output(&binary, &name, &text),
            Message::Problem(problem) => self.problems.push(problem),
        }
    }

    fn add_output(&mut self, binary: &str, name: &str, text: &str) {
        let mut tests = self.tests.iter_mut();
        match tests.find(|test| test.binary == binary && test.name == name) {
            Some(test) => test.output += text,
            None => self.problems.push(format!(
                "output of {binary}::{name}, which has no result:\n{text}"
            )),
        }
    }

    /// Adds what the machine's end and its silence tell.
    pub fn conclude(&mut self, end: &End, last_words: &str) {
        match end {
            End::Done | End::Stopped => {}
            End::Died => self.problems.push(format!(
                "the machine ended before it was done; its console:\n{last_words}"
            )),
            End::Hung(why) => self.problems.push(format!(
                "the machine hung: {why}; its console:\n{last_words}"
            )),
        }
        match &self.programs {
            Some(Programs::Accepted(_)) => {}
            Some(Programs::Rejected(why)) => {
                let problem = format!("the kernel refuses the programs: {why}");
                self.problems.push(problem);
            }
            None => self.problems.push("nothing about the programs".to_owned()),
        }
        let missing = self.missing();
        if !missing.is_empty() {
            let problem = format!("no result of {}", missing.join(", "));
            self.problems.push(problem);
        }
        let planned: usize = self.planned.values().map(Vec::len).sum();
        if self.tests.len() > planned {
            let heard = self.tests.len();
            self.problems
                .push(format!("{heard} results of {planned} tests"));
        }
        if self.tests.is_empty() {
            self.problems.push("no test ran".to_owned());
        } else if self.tests.iter().all(did_not_run) {
            let problem = "every test was skipped: nothing is known of this kernel";
            self.problems.push(problem.to_owned());
        }
    }

    /// Tests that were to run, and of which nothing was heard.
    fn missing(&self) -> Vec<String> {
        let planned = self.planned.iter().flat_map(|(binary, tests)| {
            tests
                .iter()
                .map(move |name| (binary.as_str(), name.as_str()))
        });
        let is_missing = |(binary, name): &(&str, &str)| {
            let mut tests = self.tests.iter();
            !tests.any(|test| test.binary == *binary && test.name == *name)
        };
        let missing = planned.filter(is_missing);
        missing
            .map(|(binary, name)| format!("{binary}::{name}"))
            .collect()
    }

    /// By binary.
    pub fn tallies(&self) -> BTreeMap<&str, Tally> {
        let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
        for test in &self.tests {
            tallies.entry(&test.binary).or_default().count(test);
        }
        tallies
    }

    /// Of all tests, a problem counting as one failure.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for test in &self.tests {
            tally.count(test);
        }
        tally.failed += u64::try_from(self.problems.len()).unwrap_or(u64::MAX);
        tally
    }
}

fn did_not_run(test: &Test) -> bool {
    matches!(test.outcome, Outcome::Skipped(_) | Outcome::Ignored)
}

impl Tally {
    fn count(&mut self, test: &Test) {
        self.seconds += test.seconds;
        match test.outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed | Outcome::Hung => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
            Outcome::Ignored => self.ignored += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, outcome: Outcome) -> Message {
        Message::Test(Test {
            binary: "b".to_owned(),
            name: name.to_owned(),
            outcome,
            seconds: 1.0,
            output: String::new(),
        })
    }

    fn run(messages: Vec<Message>, end: &End) -> Run {
        let mut run = Run::default();
        let accepted = Message::Programs(Programs::Accepted(Vec::new()));
        let planned = Message::Planned {
            binary: "b".to_owned(),
            tests: vec!["x".to_owned(), "y".to_owned()],
        };
        for message in [accepted, planned].into_iter().chain(messages) {
            run.hear(message);
        }
        run.conclude(end, "");
        run
    }

    fn both() -> Vec<Message> {
        vec![
            test("x", Outcome::Passed),
            test("y", Outcome::Skipped("z".to_owned())),
        ]
    }

    #[test]
    fn every_planned_test_passed_or_was_skipped_is_a_success() {
        let tally = run(both(), &End::Done).tally();
        assert_eq!((tally.passed, tally.skipped, tally.failed), (1, 1, 0));
    }

    #[test]
    fn nothing_but_skipped_tests_is_a_failure() {
        let skipped = || Outcome::Skipped("z".to_owned());
        let run = run(vec![test("x", skipped()), test("y", skipped())], &End::Done);
        assert_eq!(run.tally().failed, 1);
        assert!(run.problems[0].starts_with("every test was skipped"));
    }

    #[test]
    fn a_result_that_is_missing_is_a_failure() {
        let run = run(vec![test("x", Outcome::Passed)], &End::Done);
        assert_eq!(run.tally().failed, 1);
        assert_eq!(run.problems, ["no result of b::y"]);
    }

    #[test]
    fn a_second_result_of_a_test_is_a_failure() {
        let mut messages = both();
        messages.push(test("x", Outcome::Passed));
        let run = run(messages, &End::Done);
        assert_eq!(run.problems, ["3 results of 2 tests"]);
    }

    #[test]
    fn what_a_failed_test_wrote_is_with_its_result() {
        let output = Message::Output {
            binary: "b".to_owned(),
            name: "x".to_owned(),
            text: "panicked".to_owned(),
        };
        let mut messages = vec![test("x", Outcome::Failed), test("y", Outcome::Passed)];
        messages.push(output);
        let run = run(messages, &End::Done);
        assert_eq!(run.tests[0].output, "panicked");
        assert_eq!(run.tally().failed, 1);
    }

    #[test]
    fn a_machine_that_dies_or_hangs_is_a_failure_although_all_passed() {
        for end in [End::Died, End::Hung("silent".to_owned())] {
            assert_eq!(run(both(), &end).tally().failed, 1);
        }
    }

    #[test]
    fn a_test_that_hung_is_a_failure() {
        let hung = vec![test("x", Outcome::Hung), test("y", Outcome::Passed)];
        assert_eq!(run(hung, &End::Done).tally().failed, 1);
    }

    #[test]
    fn programs_that_are_refused_are_a_failure() {
        let refused = Message::Programs(Programs::Rejected("R1".to_owned()));
        let mut messages = both();
        messages.push(refused);
        assert_eq!(run(messages, &End::Done).tally().failed, 1);
    }
}

//! What the test harness prints, in its usual format, without colours.

/// How the harness says that a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Failed,
    Ignored,
}

/// The names in lines such as `a::b: test`; benchmarks are left out.
#[must_use]
pub fn listed(output: &str) -> Vec<String> {
    let tests = output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    tests.map(str::to_owned).collect()
}

/// The test that a line such as `test a::b ... ok` says has ended. `None` for any
/// other line, and for a verdict that we do not know: then the test did not end.
#[must_use]
pub fn ended(line: &str) -> Option<(&str, Verdict)> {
    let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    // `a::b - should panic`.
    let name = name.split_once(" - ").map_or(name, |(name, _)| name);
    let verdict = match verdict.trim_end() {
        "ok" => Verdict::Ok,
        "FAILED" => Verdict::Failed,
        "ignored" => Verdict::Ignored,
        other if other.starts_with("ignored, ") => Verdict::Ignored,
        _ => return None,
    };
    Some((name, verdict))
}

/// What the failed tests wrote, by name: the sections `---- a::b stdout ----`
/// after the last result.
#[must_use]
pub fn outputs(lines: &[String], failed: &[String]) -> Vec<(String, String)> {
    let mut outputs: Vec<(String, String)> = Vec::new();
    for line in lines {
        let heading = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" stdout ----"))
            .filter(|name| failed.iter().any(|failed| failed == name));
        match (heading, outputs.last_mut()) {
            (Some(name), _) => outputs.push((name.to_owned(), String::new())),
            // The list of names follows the last section.
            (None, Some(_)) if line == "failures:" => break,
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tests_are_read_and_benches_are_not() {
        let output = "a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(listed(output), ["a::b", "c"]);
    }

    #[test]
    fn each_kind_of_result_is_known() {
        for (line, expected) in [
            ("test a::b ... ok", ("a::b", Verdict::Ok)),
            ("test a ... FAILED", ("a", Verdict::Failed)),
            ("test a ... ignored", ("a", Verdict::Ignored)),
            ("test a ... ignored, too slow", ("a", Verdict::Ignored)),
            ("test a - should panic ... ok", ("a", Verdict::Ok)),
        ] {
            assert_eq!(ended(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn whatever_else_is_printed_is_no_result() {
        for line in [
            "",
            "running 2 tests",
            "test a has been running for over 60 seconds",
            "test a ... ",
            "test a ... okay",
            "test a ... somebody else's words",
            "xtest a ... ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            assert_eq!(ended(line), None, "{line}");
        }
    }

    #[test]
    fn each_failure_has_its_own_output() {
        let text = "\nfailures:\n\n\
            ---- a::b stdout ----\nthread 'a::b' panicked\n---- no stdout ----\n\n\
            ---- c stdout ----\nSKIPPED\n\n\n\
            failures:\n    a::b\n    c\n    d\n\n\
            test result: FAILED. 0 passed; 3 failed\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let failed = ["a::b", "c", "d"].map(str::to_owned);
        let outputs = outputs(&lines, &failed);
        assert_eq!(outputs.len(), 2);
        assert_eq!(outputs[0].0, "a::b");
        assert_eq!(
            outputs[0].1.trim(),
            "thread 'a::b' panicked\n---- no stdout ----"
        );
        assert_eq!(
            (outputs[1].0.as_str(), outputs[1].1.trim()),
            ("c", "SKIPPED")
        );
    }
}

//! A program of somebody else on the managed root may undo a denial.

use zt_tests::stranger::Stranger;

use crate::stage::{PATIENT, Settings, Stage, wait};

const HOOK: &str = "cgroup_skb/egress";

#[test]
fn a_strangers_program_is_named_everywhere_until_it_is_gone() {
    let stage = Stage::running(Settings::default());
    let hook = format!("hook=\"{HOOK}\"");
    let strangers = || stage.metric("zt_strangers", &[&hook]);
    assert_eq!(strangers(), 0.0);
    assert_eq!(stage.tell(&["status"]).code, 0);

    let stranger = Stranger::attach("a_stranger", &stage.managed).unwrap();
    // The command looks for itself; the agent does every other second.
    let status = stage.ask(&["status"]);
    assert_eq!(status.code, 1, "{status:?}");
    assert!(
        status.output.contains("(a_stranger) is not ours"),
        "{status:?}"
    );
    wait(PATIENT * 2, || strangers() == 1.0);
    let (code, said) = stage.agent.readiness().unwrap();
    assert_eq!(code, 503);
    assert!(said.contains("not ours") && said.contains(HOOK), "{said}");
    stage.is_denied(&stage.other);

    drop(stranger);
    wait(PATIENT * 2, || stage.agent.readiness().unwrap().0 == 200);
    assert_eq!(strangers(), 0.0);
}

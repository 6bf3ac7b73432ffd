//! The clients' tallies, the kernel's counters and the agent's are the same.

use zt_tests::{agent, workload::Udp};

use crate::stage::{CLIENT, OTHER, PATIENT, Settings, Stage, wait};

#[test]
fn everybody_counts_the_same() {
    let mut stage = Stage::running(Settings::default());
    let (mut answered, mut refused) = (0_u32, 0_u32);
    for _ in 0..4 {
        answered += u32::from(stage.connect(&stage.client).replied());
        refused += u32::from(crate::stage::is_refused(&stage.connect(&stage.other)));
        let datagram = stage.other.udp(stage.to(), Udp::SendTo, PATIENT).unwrap();
        refused += u32::from(crate::stage::is_refused(&datagram));
    }
    assert_eq!((answered, refused), (4, 8));

    let metrics = stage.agent.metrics().unwrap();
    let status = stage.status();
    let counted = |word: &str, source: &str| {
        let labels = [
            format!("decision=\"{word}\""),
            format!("source=\"{source}\""),
        ];
        let labels = labels.each_ref().map(String::as_str);
        agent::sample(&metrics, "zt_decisions_total", &labels).unwrap_or(0.0)
    };
    // What passes is decided at both ends, what does not only at the caller's.
    assert_eq!(counted("allow", CLIENT), f64::from(2 * answered));
    assert_eq!(counted("deny", OTHER), f64::from(refused));
    assert_eq!(counted("allow", OTHER) + counted("deny", CLIENT), 0.0);
    let all = agent::sample(&metrics, "zt_decisions_total", &[]).unwrap();
    let total = |name: &str| status["kernel"][name].as_f64().unwrap();
    assert_eq!(all, total("decisions"), "{metrics}");
    assert_eq!(total("decisions"), total("emitted") + total("lost_ring"));
    assert_eq!(total("consumed"), total("emitted"));
    let trail = |name: &str| status["agent"]["trail"][name].as_f64().unwrap();
    assert_eq!(trail("consumed"), total("consumed"));
    let known = ["recorded", "pending", "unwritten"].map(trail);
    assert_eq!(known.iter().sum::<f64>(), all);
    assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
    stage.agent.stop().unwrap();
}

/// Asked in the very moment of readiness, and after each connection.
#[test]
fn the_agents_numbers_are_those_of_the_moment() {
    let stage = Stage::new(Settings::default());
    let mut stage = stage;
    stage.agent.start().unwrap();
    for _ in 0..3 {
        let status = stage.status();
        let trail = &status["agent"]["trail"];
        assert_eq!(trail["consumed"], status["kernel"]["consumed"], "{status}");
        assert_eq!(trail["in_ring"], 0);
        stage.passes(&stage.client);
        // Three scrapes are three moments, and the agent answers with numbers
        // of a moment ago where it is kept busy.
        wait(PATIENT, || {
            let records = stage.metric("zt_audit_records_total", &[]);
            let flying = stage.metric("zt_audit_in_flight", &[]);
            records + flying == stage.metric("zt_decisions_total", &[])
        });
    }
}

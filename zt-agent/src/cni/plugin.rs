//! From what the runtime asks to what it is told, by the agent.

use std::os::fd::AsFd as _;

use super::{
    answer::{self, Code, Failure},
    call::{self, Call, Command, Environment},
    config::NetworkConfig,
};
use crate::{
    admin::{
        client,
        protocol::{Attach, Detach},
    },
    source::netns,
};

/// What to say on success. `config`: what the runtime sent.
pub fn act(environment: Environment<'_>, config: &[u8]) -> Result<String, Failure> {
    match Command::read(environment)? {
        Command::Version => Ok(answer::versions(config)),
        Command::Add => add(environment, config),
        Command::Check => check(environment, config),
        Command::Del => del(environment, config),
        Command::Gc => collect(config),
        Command::Status => status(config),
    }
}

fn add(environment: Environment<'_>, config: &[u8]) -> Result<String, Failure> {
    let config = NetworkConfig::read(config, "0.3.1")?;
    let previous = config.previous()?;
    attach(&Call::read(environment)?, &config)?;
    Ok(answer::line(previous))
}

/// The same as ADD: what is attached already stays so.
fn check(environment: Environment<'_>, config: &[u8]) -> Result<String, Failure> {
    let config = NetworkConfig::read(config, "0.4.0")?;
    attach(&Call::read(environment)?, &config)?;
    Ok(String::new())
}

fn attach(call: &Call, config: &NetworkConfig) -> Result<(), Failure> {
    let netns = netns::open(&call.netns).map_err(|error| {
        let message = format!("cannot open the network namespace {}", call.netns.display());
        Failure::io(&message, &error)
    })?;
    let request = Attach {
        pod: call.pod,
        namespace: call.namespace.clone(),
        name: call.name.clone(),
        sandbox: call.sandbox.clone(),
        network: config.name.clone(),
        interface: call.interface.clone(),
        timeout: config.timeout,
    };
    let attached = client::attach(&config.socket, request, netns.as_fd());
    attached.map(drop).map_err(|error| {
        let message = format!(
            "the interface {} of pod {}/{} is not covered, so the pod must not start",
            call.interface, call.namespace, call.name
        );
        Failure::of_agent(&message, &error)
    })
}

/// An agent that is away forgets the pod when it sees that its interface is gone.
fn del(environment: Environment<'_>, config: &[u8]) -> Result<String, Failure> {
    let config = NetworkConfig::read(config, "0.3.1")?;
    let sandbox = call::sandbox(environment)?;
    let _ = client::detach(&config.socket, Detach::Sandbox(sandbox));
    Ok(String::new())
}

/// Nor has an agent that is away anything to collect.
fn collect(config: &[u8]) -> Result<String, Failure> {
    let config = NetworkConfig::read(config, "1.1.0")?;
    let valid = config.valid.into_iter().map(|one| one.container);
    let others = Detach::Others {
        network: config.name,
        sandboxes: valid.collect(),
    };
    let _ = client::detach(&config.socket, others);
    Ok(String::new())
}

fn status(config: &[u8]) -> Result<String, Failure> {
    let config = NetworkConfig::read(config, "1.1.0")?;
    let can = client::can_attach(&config.socket);
    can.map(|()| String::new()).map_err(|error| {
        let message = "no pod's interface can be covered now";
        Failure::new(Code::NotAvailable, message, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGUMENTS: &str =
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=0f0e0d0c-1111-4222-8333-444455556666";

    fn asked(command: &str) -> Result<String, Failure> {
        let environment = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => command,
                "CNI_CONTAINERID" => "0123",
                "CNI_NETNS" => "/proc/self/ns/net",
                "CNI_IFNAME" => "eth0",
                "CNI_ARGS" => ARGUMENTS,
                _ => return None,
            };
            Some(value.to_owned())
        };
        let config = br#"{"cniVersion":"1.1.0","name":"pods","socket":"/nowhere/agent.sock","cni.dev/valid-attachments":[{"containerID":"1","ifname":"eth0"}],"prevResult":{"cniVersion":"1.1.0"}}"#;
        act(&environment, config)
    }

    #[test]
    fn while_the_agent_is_away_nothing_is_added_and_everything_can_go() {
        for (command, code) in [
            ("ADD", Code::TryAgain),
            ("CHECK", Code::TryAgain),
            ("STATUS", Code::NotAvailable),
        ] {
            let failure = asked(command).unwrap_err();
            assert_eq!(failure.code, code, "{command}");
            assert!(failure.details.contains("not running"), "{failure:?}");
        }
        assert_eq!(asked("DEL").unwrap(), "");
        assert_eq!(asked("GC").unwrap(), "");
        assert!(asked("VERSION").unwrap().contains("supportedVersions"));
    }
}

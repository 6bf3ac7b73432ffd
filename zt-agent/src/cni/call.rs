//! What the runtime says in the environment.

use std::path::PathBuf;

use super::answer::{Code, Failure};
use crate::source::kubernetes::objects::Uid;

/// How the environment is read.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    pub fn read(environment: Environment<'_>) -> Result<Self, Failure> {
        match required(environment, "CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(Failure::new(
                Code::InvalidEnvironment,
                format!("CNI_COMMAND is {other:?}"),
                "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION",
            )),
        }
    }
}

/// A pod with a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub sandbox: String,
    pub netns: PathBuf,
    pub interface: String,
    pub pod: Uid,
    pub namespace: String,
    pub name: String,
}

impl Call {
    pub fn read(environment: Environment<'_>) -> Result<Self, Failure> {
        let arguments = required(environment, "CNI_ARGS")?;
        let of_pod = |name: &str| {
            argument(&arguments, name).ok_or_else(|| {
                Failure::new(
                    Code::InvalidEnvironment,
                    format!("CNI_ARGS has no {name}"),
                    "zt-agent-cni is for the pods of Kubernetes, which have one",
                )
            })
        };
        let uid = of_pod("K8S_POD_UID")?;
        let pod = uid.parse().map_err(|error| {
            Failure::new(
                Code::InvalidEnvironment,
                format!("K8S_POD_UID is {uid:?}"),
                format_args!("that {error}; a static pod, which has another, can only be on the host's network where this plugin is"),
            )
        })?;
        Ok(Self {
            sandbox: sandbox(environment)?,
            netns: required(environment, "CNI_NETNS")?.into(),
            interface: required(environment, "CNI_IFNAME")?,
            pod,
            namespace: of_pod("K8S_POD_NAMESPACE")?.to_owned(),
            name: of_pod("K8S_POD_NAME")?.to_owned(),
        })
    }
}

/// The runtime's name for what a namespace belongs to.
pub fn sandbox(environment: Environment<'_>) -> Result<String, Failure> {
    required(environment, "CNI_CONTAINERID")
}

fn required(environment: Environment<'_>, name: &str) -> Result<String, Failure> {
    let value = environment(name).filter(|value| !value.is_empty());
    value.ok_or_else(|| {
        Failure::new(
            Code::InvalidEnvironment,
            format!("{name} is missing"),
            "a container runtime sets it; zt-agent cni is not for the command line, but zt-agent cni install is",
        )
    })
}

/// Of `KEY=VALUE;KEY=VALUE`.
fn argument<'a>(arguments: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
    let value = pairs.find_map(|(key, value)| (key == name).then_some(value))?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGUMENTS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=01;K8S_POD_UID=0f0e0d0c-1111-4222-8333-444455556666";

    fn environment(arguments: &str) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let value = match name {
                "CNI_CONTAINERID" => "0123",
                "CNI_NETNS" => "/run/netns/a",
                "CNI_IFNAME" => "eth0",
                "CNI_ARGS" => arguments,
                "CNI_COMMAND" => "",
                _ => return None,
            };
            Some(value.to_owned())
        }
    }

    #[test]
    fn the_pod_is_in_the_arguments() {
        let call = Call::read(&environment(ARGUMENTS)).unwrap();
        assert_eq!((&*call.namespace, &*call.name), ("shop", "web"));
        assert_eq!(call.pod.to_string(), "0f0e0d0c-1111-4222-8333-444455556666");
    }

    #[test]
    fn what_is_missing_or_no_uid_is_named() {
        let refused = |arguments: &str| {
            let failure = Call::read(&environment(arguments)).unwrap_err();
            assert_eq!(failure.code, Code::InvalidEnvironment);
            failure.message
        };
        assert_eq!(refused(""), "CNI_ARGS is missing");
        let without = ARGUMENTS.replace("K8S_POD_UID", "X");
        assert_eq!(refused(&without), "CNI_ARGS has no K8S_POD_UID");
        // As the kubelet calls a static pod.
        let hash = ARGUMENTS.replace('-', "");
        assert!(refused(&hash).starts_with("K8S_POD_UID is"));
        let failure = Command::read(&environment(ARGUMENTS)).unwrap_err();
        assert_eq!(failure.message, "CNI_COMMAND is missing");
    }
}

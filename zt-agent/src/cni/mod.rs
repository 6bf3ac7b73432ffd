//! The chained CNI plugin: a pod's first process starts when the pod's interface
//! is covered, and not at all while there is no agent.
//!
//! The runtime has made the pod's network namespace, and the plugins before this
//! one its interfaces, but nothing runs in it yet. So the namespace itself, as a
//! descriptor, goes to the agent.
//!
//! | file | job |
//! |---|---|
//! | `call` | what the runtime says in the environment |
//! | `config` | what it says on standard input |
//! | `answer` | what it is told on standard output |
//! | `plugin` | from the one to the other, by the agent |
//! | `json` | where the parts of a JSON text are |
//! | `list` | a network's list of plugins, with and without this one |
//! | `install` | the files on a node |

mod answer;
mod call;
mod config;
pub mod install;
mod json;
mod list;
mod plugin;

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

pub use config::{SOCKET, TIMEOUT};

/// The file that a runtime executes, and the `type` in its configuration.
pub const NAME: &str = "zt-agent-cni";

/// Longest configuration, bytes: it has all that the plugins before this one
/// said.
const CONFIG: u64 = 4 << 20;

/// Whether this process was started as the plugin. `program`: what it was called
/// as.
#[must_use]
pub fn is_called(program: Option<OsString>) -> bool {
    program.is_some_and(|program| Path::new(&program).file_name() == Some(NAME.as_ref()))
}

/// Does what the runtime asks.
#[must_use]
pub fn run() -> ExitCode {
    let mut config = Vec::new();
    let read = std::io::stdin()
        .lock()
        .take(CONFIG)
        .read_to_end(&mut config);
    let answer = read
        .map_err(|error| answer::Failure::io("cannot read the configuration", &error))
        .and_then(|_| plugin::act(&|name| std::env::var(name).ok(), &config));
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.text(&config), ExitCode::FAILURE),
    };
    // A runtime that does not listen needs no answer.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_plugin_under_the_plugins_name_only() {
        for (program, is_plugin) in [
            (Some("/opt/cni/bin/zt-agent-cni"), true),
            (Some("zt-agent-cni"), true),
            (Some("/usr/bin/zt-agent"), false),
            (None, false),
        ] {
            assert_eq!(is_called(program.map(OsString::from)), is_plugin);
        }
    }
}

//! `zt-agent policy render-networkpolicy`

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use anyhow::bail;

use super::files;
use crate::{
    cli::{Global, output, settings},
    document::config::IdentityConfig,
    resource::{self, network_policy::Mirror},
};

#[derive(Debug, clap::Args)]
pub struct RenderArgs {
    /// Files, and directories of files [default: the configured ones]
    pub paths: Vec<PathBuf>,
    /// The label of pods that has the name of their service account as its value
    #[arg(long, default_value = "app", value_name = "NAME")]
    pub label: String,
}

pub fn run(global: &Global, args: &RenderArgs) -> anyhow::Result<ExitCode> {
    let config = settings::load(global)?;
    let IdentityConfig::Kubernetes(cluster) = &config.identity else {
        bail!(
            "{} does not say how service accounts become SPIFFE IDs; write `identity: kubernetes`, and the trust domain and the name of the cluster under `kubernetes:`",
            global.config.display()
        );
    };
    let set = files::load(&files::paths(&args.paths, &config))?;
    let mirror = resource::network_policy::mirror(&set.policies, &cluster.template, &args.label);
    output::text(&render(&mirror))?;
    Ok(ExitCode::SUCCESS)
}

/// For `kubectl apply -f -`; what is left out stands above as comments.
fn render(mirror: &Mirror) -> String {
    let mut text = String::new();
    for sentence in &mirror.left_out {
        let _ = writeln!(text, "# not mirrored: {sentence}");
    }
    for object in &mirror.objects {
        text += "---\n";
        text += &resource::yaml::document(object);
    }
    text
}

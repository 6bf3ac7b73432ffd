//! The demo, with everything that it needs.

use anyhow::{Result, bail};

use crate::step::Steps;
use crate::{build, setup, workspace};

pub fn run(steps: &Steps) -> Result<()> {
    if !workspace::is_root() {
        bail!("the demo loads kernel programs and makes cgroups and namespaces: run it as root");
    }
    let tools = setup::run(steps)?;
    build::everything(steps, &tools, build::Profile::Release)?;
    show(steps)
}

fn show(_steps: &Steps) -> Result<()> {
    bail!("there is no demo yet")
}

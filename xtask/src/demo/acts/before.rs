//! Without the agent everything must pass: what would not have arrived anyway
//! proves nothing later.

use anyhow::{Result, ensure};

use super::beneath;
use crate::demo::Demo;
use crate::demo::round::{Expected, Round};

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("Before the agent runs: everybody reaches everybody");
    let round = Round::run(&mut demo.stage, Expected::Everything)?;
    demo.check_round(&round, "passes with our programs detached");
    ensure!(
        round.wrong().is_empty(),
        "a cell that does not pass without the agent proves nothing; the demo ends here"
    );
    beneath::before(demo)
}

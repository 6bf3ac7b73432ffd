//! What the demo claims, and whether it held.

use std::time::Instant;

use super::paint;

/// Prints every claim as it is checked, and keeps those that did not hold.
pub struct Checks {
    started: Instant,
    act: String,
    held: usize,
    failed: Vec<String>,
}

impl Checks {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            act: String::new(),
            held: 0,
            failed: Vec::new(),
        }
    }

    /// Begins a part of the demo.
    pub fn act(&mut self, title: &str) {
        title.clone_into(&mut self.act);
        let seconds = self.started.elapsed().as_secs_f64();
        let time = paint::dim(&format!("{seconds:.1} s"));
        println!("\n{} {time}", paint::bold(&format!("── {title}")));
    }

    /// Says something that needs no proof.
    pub fn say(&self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// Notes a claim, and whether it held.
    pub fn check(&mut self, held: bool, claim: &str) {
        if held {
            self.held += 1;
            println!("   {} {claim}", paint::green("✓"));
        } else {
            println!("   {} {}", paint::red("✗"), paint::red(claim));
            self.failed.push(format!("{}: {claim}", self.act));
        }
    }

    /// Notes what ended the demo early.
    pub fn abort(&mut self, error: &anyhow::Error) {
        println!(
            "   {} {}",
            paint::red("✗"),
            paint::red(&format!("{error:#}"))
        );
        self.failed.push(format!("{}: {error:#}", self.act));
    }

    /// Lists what failed; `true` if nothing did.
    pub fn conclude(&self) -> bool {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.failed.is_empty() {
            let line = format!("All {} checks held, in {seconds:.0} s.", self.held);
            println!("\n{}", paint::green(&line));
            return true;
        }
        let line = format!("{} checks held, {} failed:", self.held, self.failed.len());
        println!("\n{}", paint::red(&line));
        for failed in &self.failed {
            println!("   {} {failed}", paint::red("✗"));
        }
        false
    }
}

//! The results for people: Markdown, and a plot per workload.

use std::path::Path;

use anyhow::Result;

use super::{
    change::{self, Changes},
    contender::Contender,
    environment::Environment,
    goals,
    programs::{self, Cost},
    results::{Figure, Results, Series},
    workload::Workload,
};
use crate::{
    output::{put, put_json},
    plot::{self, Bar},
    statistics::Summary,
};

/// The start of the names of all files.
const NAME: &str = "end-to-end";

/// Writes the results, the report and the plots.
///
/// # Errors
/// When a file cannot be written.
pub fn write(environment: &Environment, results: &Results, directory: &Path) -> Result<()> {
    let (json, text) = (format!("{NAME}.json"), format!("{NAME}.md"));
    put_json(directory, &json, environment, results)?;
    put(directory, &text, &markdown(environment, results))?;
    for workload in Workload::ALL {
        put(directory, &plot_name(workload), &plot(results, workload))?;
    }
    Ok(())
}

/// What each program took, per workload.
#[must_use]
pub fn programs(environment: &Environment, costs: &[Cost]) -> String {
    let mut text = format!(
        "# Programs\n\n{}\nNanoseconds of one run: medians of the rounds, with quartiles. \
         The kernel reads its clock twice in each, so that only differences count.\n",
        environment.head()
    );
    for workload in programs::WORKLOADS {
        let title = workload.title();
        text.push_str(&format!("\n## {title}\n\n"));
        text.push_str(&programs::table(costs, workload));
    }
    text.push_str(&format!(
        "\n## What has to be reached\n\nzt-agent with 64k entries:\n\n{}\n",
        programs::goals(costs)
    ));
    text
}

/// Writes that, and the figures.
///
/// # Errors
/// When a file cannot be written.
pub fn write_programs(environment: &Environment, costs: &[Cost], directory: &Path) -> Result<()> {
    put_json(directory, "programs.json", environment, &costs)?;
    put(directory, "programs.md", &programs(environment, costs))
}

/// How long policies took into force.
#[must_use]
pub fn changes(environment: &Environment, changes: &Changes) -> String {
    let (table, goals) = (change::table(changes), change::goals(changes));
    let head = environment.head();
    format!("# Changes\n\n{head}\n{table}\n## What has to be reached\n\n{goals}\n")
}

/// Writes that, and the figures.
///
/// # Errors
/// When a file cannot be written.
pub fn write_changes(environment: &Environment, of: &Changes, directory: &Path) -> Result<()> {
    put_json(directory, "changes.json", environment, of)?;
    put(directory, "changes.md", &changes(environment, of))
}

fn plot_name(workload: Workload) -> String {
    format!("{NAME}-{}.svg", workload.name())
}

/// The report; the plots are beside it.
#[must_use]
pub fn markdown(environment: &Environment, results: &Results) -> String {
    let settings = &results.settings;
    let mut text = format!(
        "# End to end\n\n{}\n{} rounds, each contender once in each, {} ms per workload. Medians with quartiles; \
         ratios are of medians, with the quartiles of the ratios in each round.\n\n",
        environment.head(),
        settings.rounds,
        settings.window_ms
    );
    text.push_str("## What has to be reached\n\n");
    text.push_str(&format!(
        "zt-agent with 64k entries:\n\n{}\n",
        goals::table(results)
    ));
    for workload in Workload::ALL {
        let title = workload.title();
        text.push_str(&format!("## {title}\n\n"));
        text.push_str(&format!("![{title}]({})\n\n", plot_name(workload)));
        text.push_str(&table(results, workload));
        text.push('\n');
    }
    text
}

/// The ratios to reach, and whether they are.
#[must_use]
pub fn goals(results: &Results) -> String {
    goals::table(results)
}

/// The figures of one workload.
#[must_use]
pub fn table(results: &Results, workload: Workload) -> String {
    let unit = workload.unit();
    let mut table = format!(
        "| | entries | {unit} | p99, µs | of none | of minimal |\n|---|--:|--:|--:|--:|--:|\n"
    );
    for series in &results.contenders {
        let contender = series.contender;
        let cells = [
            series.title.clone(),
            entries(series),
            spread(results.summary(contender, workload, Figure::Rate)),
            p99(results, contender, workload),
            ratio(results, contender, Contender::Nothing, workload),
            ratio(results, contender, Contender::Minimal, workload),
        ];
        table.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    table
}

fn entries(series: &Series) -> String {
    match series.entries {
        0 => String::new(),
        entries => entries.to_string(),
    }
}

fn p99(results: &Results, contender: Contender, workload: Workload) -> String {
    if workload == Workload::Stream {
        return String::new();
    }
    spread(results.summary(contender, workload, Figure::P99))
}

fn spread(summary: Option<Summary>) -> String {
    summary.map_or_else(String::new, |Summary { low, median, high }| {
        format!("{median:.0} ({low:.0}–{high:.0})")
    })
}

fn ratio(results: &Results, of: Contender, base: Contender, workload: Workload) -> String {
    let Some(ratio) = results.ratio(of, base, workload) else {
        return String::new();
    };
    let rounds = results.paired(of, base, workload);
    rounds.map_or_else(String::new, |Summary { low, high, .. }| {
        format!("{ratio:.3} ({low:.3}–{high:.3})")
    })
}

fn plot(results: &Results, workload: Workload) -> String {
    let bar = |series: &Series| {
        let contender = series.contender;
        let summary = results.summary(contender, workload, Figure::Rate)?;
        let of_none = results.ratio(contender, Contender::Nothing, workload);
        let of_none = of_none.map_or_else(String::new, |ratio| format!(", {ratio:.2} of none"));
        Some(Bar {
            label: series.title.clone(),
            note: format!("{:.0}{of_none}", summary.median),
            ours: matches!(contender, Contender::Audit | Contender::Enforce(_)),
            summary,
        })
    };
    let bars: Vec<Bar> = results.contenders.iter().filter_map(bar).collect();
    plot::bars(workload.title(), workload.unit(), &bars)
}

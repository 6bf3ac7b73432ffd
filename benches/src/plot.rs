//! Horizontal bars with their quartiles, as SVG.

use std::fmt::Write as _;

use crate::statistics::Summary;

/// A bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub label: String,
    pub summary: Summary,
    /// Written beside it.
    pub note: String,
    /// What is ours is drawn in another colour.
    pub ours: bool,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 210.0;
/// Right of the longest bar, for its note.
const RIGHT: f64 = 190.0;
const TOP: f64 = 56.0;
const ROW: f64 = 24.0;
const THICK: f64 = 14.0;

/// The plot, from 0 to the largest value. `unit` is what the bars count.
#[must_use]
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.summary.high).fold(0.0, f64::max);
    let scale = if most > 0.0 {
        (WIDTH - LEFT - RIGHT) / most
    } else {
        0.0
    };
    let rows = f64::from(u32::try_from(bars.len()).unwrap_or(u32::MAX));
    let height = TOP + rows * ROW + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">{}</text>\n\
         <text x=\"12\" y=\"41\" fill=\"#555\">{}; bar: median, line: quartiles</text>\n",
        escaped(title),
        escaped(unit)
    );
    let mut y = TOP;
    for bar in bars {
        svg.push_str(&row(bar, scale, y));
        y += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}

fn row(bar: &Bar, scale: f64, y: f64) -> String {
    let Summary { low, median, high } = bar.summary;
    let (length, low, high) = (median * scale, LEFT + low * scale, LEFT + high * scale);
    let (middle, text) = (y + THICK / 2.0, y + THICK - 2.5);
    let colour = if bar.ours { "#2563a8" } else { "#a9b4c0" };
    let mut row = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        row,
        "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{THICK}\" fill=\"{colour}\"/>\n\
         <path d=\"M{low:.1} {middle:.1}H{high:.1}\" stroke=\"#111\" stroke-width=\"2\"/>\n\
         <text x=\"{:.1}\" y=\"{text:.1}\" fill=\"#333\">{}</text>\n",
        LEFT - 8.0,
        escaped(&bar.label),
        high.max(LEFT + length) + 8.0,
        escaped(&bar.note)
    );
    row
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(median: f64, high: f64) -> Bar {
        Bar {
            label: "a < b & c".into(),
            summary: Summary {
                low: median,
                median,
                high,
            },
            note: "1".into(),
            ours: false,
        }
    }

    #[test]
    fn the_largest_value_fills_the_width_and_the_others_their_part() {
        let svg = bars("t", "u", &[bar(100.0, 100.0), bar(25.0, 25.0)]);
        assert!(svg.contains("width=\"360.0\""), "{svg}");
        assert!(svg.contains("width=\"90.0\""), "{svg}");
    }

    #[test]
    fn text_cannot_end_the_markup() {
        let svg = bars("<t>", "u", &[bar(1.0, 1.0)]);
        assert!(svg.contains("&lt;t&gt;") && svg.contains("a &lt; b &amp; c"));
    }

    #[test]
    fn nothing_and_zeros_make_a_plot() {
        assert!(bars("t", "u", &[]).ends_with("</svg>\n"));
        assert!(!bars("t", "u", &[bar(0.0, 0.0)]).contains("NaN"));
    }
}

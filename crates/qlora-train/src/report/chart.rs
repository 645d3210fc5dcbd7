//! A chart over steps as inline SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;
/// More points than this are averaged in groups: the plot has fewer pixels.
const MOST_POINTS: usize = 800;
const COLOURS: [&str; 2] = ["#2a6fdb", "#e07b00"];

/// Curves with common axes.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) series: Vec<Series>,
}

/// One curve.
pub(super) struct Series {
    name: &'static str,
    points: Vec<(f64, f64)>,
    /// Whether each point is marked and shows its value under the pointer.
    marked: bool,
}

impl Series {
    /// A dense curve.
    pub(super) fn line(name: &'static str, points: impl Iterator<Item = (f64, f64)>) -> Self {
        Self { name, points: thinned(finite(points)), marked: false }
    }

    /// A curve with few points, each marked.
    pub(super) fn dots(name: &'static str, points: impl Iterator<Item = (f64, f64)>) -> Self {
        Self { name, points: finite(points), marked: true }
    }
}

impl Chart {
    /// The chart, or nothing when it has no points.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        if points().next().is_none() {
            return String::new();
        }
        let (left, right) = range(points().map(|point| point.0));
        let (low, high) = range(points().map(|point| point.1));
        let x = |value: f64| LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM);

        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"18\">{title}</text>\n",
            title = self.title
        );
        for tick in ticks(low, high) {
            let at = y(tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                label(tick)
            );
        }
        for tick in ticks(left, right) {
            let (at, base) = (x(tick), HEIGHT - 10.0);
            let _ = writeln!(
                svg,
                "<text x=\"{at:.1}\" y=\"{base:.1}\" text-anchor=\"middle\">{}</text>",
                label(tick)
            );
        }
        let shown = self.series.iter().filter(|series| !series.points.is_empty()).count();
        for (index, (series, colour)) in self.series.iter().zip(COLOURS).enumerate() {
            let coordinates: Vec<String> =
                series.points.iter().map(|&(a, b)| format!("{:.1},{:.1}", x(a), y(b))).collect();
            let _ = writeln!(svg, "<polyline stroke=\"{colour}\" points=\"{}\"/>", coordinates.join(" "));
            if series.marked || series.points.len() == 1 {
                for &(a, b) in &series.points {
                    let (at, height, value) = (x(a), y(b), label(b));
                    let _ = writeln!(
                        svg,
                        "<circle cx=\"{at:.1}\" cy=\"{height:.1}\" r=\"3\" fill=\"{colour}\">\
                         <title>step {a}: {value}</title></circle>"
                    );
                }
            }
            if shown > 1 {
                let at = WIDTH - RIGHT - 110.0 * (self.series.len() - index) as f64;
                let _ = writeln!(
                    svg,
                    "<text x=\"{at:.1}\" y=\"18\" style=\"fill:{colour}\">● {}</text>",
                    series.name
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn finite(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    points.filter(|(_, value)| value.is_finite()).collect()
}

/// Means of groups, so that at most [`MOST_POINTS`] are left.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points;
    }
    let mean = |group: &[(f64, f64)]| {
        let count = group.len() as f64;
        (group.iter().map(|p| p.0).sum::<f64>() / count, group.iter().map(|p| p.1).sum::<f64>() / count)
    };
    points.chunks(points.len().div_ceil(MOST_POINTS)).map(mean).collect()
}

/// Smallest and largest value, never equal.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let widened = if high > low { 0.0 } else { (low.abs() * 0.1).max(1e-9) };
    (low - widened, high + widened)
}

/// Three to six round numbers between two.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 4.0;
    let magnitude = 10_f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|&step| step >= raw).unwrap_or(raw);
    let first = (low / step).ceil();
    (0..=8).map(|i| (first + f64::from(i)) * step).take_while(|&tick| tick <= high + step * 1e-9).collect()
}

/// A number in at most about seven characters.
fn label(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".to_string()
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.1e}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(1.0, 9.0), [2.0, 4.0, 6.0, 8.0]);
        for (low, high) in [(0.013, 0.0131), (-3.0, 5e6), (1e-9, 2e-9)] {
            let ticks = ticks(low, high);
            assert!((2..=6).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks.iter().all(|tick| (low..=high).contains(tick)), "{ticks:?}");
        }
    }

    #[test]
    fn many_points_are_thinned_and_odd_ones_drawn() {
        let points = |count: usize| (0..count).map(|i| (i as f64, 1.0 / (i + 1) as f64));
        assert_eq!(Series::line("a", points(800)).points.len(), 800);
        assert!((400..=800).contains(&Series::line("a", points(100_001)).points.len()));
        for count in 0..3 {
            let chart = Chart { title: "t", series: vec![Series::line("a", points(count))] };
            let svg = chart.svg();
            assert_eq!(svg.is_empty(), count == 0);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let with_nan = Series::line("a", [(0.0, f64::NAN), (1.0, 2.0)].into_iter());
        assert_eq!(with_nan.points, [(1.0, 2.0)]);
    }
}

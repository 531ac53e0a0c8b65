//! A small chart for the terminal: evidence over time, on a scale of powers of ten.

/// Rows between 1 and the threshold.
const ROWS: usize = 8;

pub(super) struct EvidenceChart<'a> {
    /// log10 of the e-value, one for each tick.
    pub(super) values: &'a [f64],
    /// log10 of what rejects; above 0.
    pub(super) threshold: f64,
    pub(super) width: usize,
    /// The time from the left to the right.
    pub(super) seconds: f64,
    pub(super) colours: bool,
}

impl EvidenceChart<'_> {
    pub(super) fn lines(&self) -> Vec<String> {
        let columns = self.columns();
        let mut lines = Vec::with_capacity(ROWS + 2);
        for row in (0..=ROWS).rev() {
            let level = self.threshold * row as f64 / ROWS as f64;
            let label = match row {
                ROWS => format!("{:.0}", 10f64.powf(self.threshold)),
                0 => "1".to_owned(),
                _ if row * 2 == ROWS => format!("{:.0}", 10f64.powf(level)),
                _ => String::new(),
            };
            let mut text = String::new();
            for value in &columns {
                let reaches = *value >= level - 1e-9 && (row > 0 || *value > 0.0);
                text.push(match (reaches, row) {
                    (true, _) => '#',
                    (false, ROWS) => '-',
                    (false, 0) => '_',
                    (false, _) => ' ',
                });
            }
            let is_over = row == ROWS && text.contains('#');
            let text = if is_over && self.colours {
                format!("\x1b[1;31m{text}\x1b[0m")
            } else {
                text
            };
            lines.push(format!("{label:>5} |{}", text.trim_end()));
        }
        let right = format!("{:.0} s", self.seconds);
        let room = columns.len().max(right.len() + 4) - right.len();
        lines.push(format!("       {:<room$}{right}", "0 s"));
        lines
    }

    /// The largest value of each column.
    fn columns(&self) -> Vec<f64> {
        let each = self.values.len().div_ceil(self.width).max(1);
        self.values
            .chunks(each)
            .map(|chunk| chunk.iter().copied().fold(f64::MIN, f64::max))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> Vec<String> {
        EvidenceChart {
            values,
            threshold: 2.0,
            width: 10,
            seconds: 30.0,
            colours: false,
        }
        .lines()
    }

    #[test]
    fn evidence_that_grows_reaches_the_line() {
        let growing: Vec<f64> = (0..30).map(|at| f64::from(at) * 0.1).collect();
        let lines = chart(&growing);
        assert_eq!(lines[0], "  100 |------####");
        assert_eq!(lines[4], "   10 |   #######");
        assert_eq!(lines.last().unwrap().trim(), "0 s   30 s");
    }

    #[test]
    fn no_evidence_is_a_flat_line() {
        let lines = chart(&[-0.1; 5]);
        assert_eq!(lines[0], "  100 |-----");
        assert_eq!(lines[8], "    1 |_____");
        assert!(lines[1..8].iter().all(|line| !line.contains('#')));
    }

    #[test]
    fn nothing_recorded_is_an_empty_chart() {
        assert_eq!(chart(&[]).len(), 10);
    }
}

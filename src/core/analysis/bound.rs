//! The upper bound of a failure rate, from counts.

/// Steps of the bisection; a fixed number, so that every implementation gets the same digits.
const HALVINGS: u32 = 50;

/// `U(k0, n0)`: the largest rate that is still plausible after `failed` of `total` results, with error probability
/// `conf`.
///
/// The Chernoff bound of a binomial proportion: the largest `u` in `[k/n, 1]` with `n · kl(k/n, u) ≤ ln(1/conf)`, where
/// `kl` is the Kullback-Leibler divergence of two coins. Without results every rate is plausible: 1.
pub fn upper_bound(failed: f64, total: f64, conf: f64) -> f64 {
    if total <= 0.0 {
        return 1.0;
    }
    let rate = (failed / total).clamp(0.0, 1.0);
    let most = -conf.ln();
    let (mut low, mut high) = (rate, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if middle >= 1.0 || total * divergence(rate, middle) > most {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// Whether `failed` of `total` clearly exceed a rate: more than it, and `n · kl(k/n, p) > ln significance`.
pub(super) fn is_significant(failed: f64, total: f64, rate: f64, significance: f64) -> bool {
    let rate = rate.clamp(1e-6, 1.0 - 1e-9);
    failed > 0.0
        && total > 0.0
        && failed / total > rate
        && total * divergence(failed / total, rate) > significance.ln()
}

/// `kl(a, b) = a ln(a/b) + (1-a) ln((1-a)/(1-b))`, for `a ≤ b < 1`.
fn divergence(a: f64, b: f64) -> f64 {
    let heads = if a > 0.0 { a * (a / b).ln() } else { 0.0 };
    let tails = if a < 1.0 {
        (1.0 - a) * ((1.0 - a) / (1.0 - b)).ln()
    } else {
        0.0
    };
    heads + tails
}

#[cfg(test)]
mod tests {
    use super::{is_significant, upper_bound};

    #[test]
    fn counts_are_significant_as_the_specification_says() {
        for (failed, total, rate, expected) in [
            (3.0, 50.0, 0.01, false),
            (12.0, 100.0, 0.05, true),
            (8.0, 100.0, 0.05, false),
            (3.0, 60.0, 0.0, true),
            (0.0, 60.0, 0.0, false),
        ] {
            let found = is_significant(failed, total, rate, 20.0);
            assert_eq!(found, expected, "{failed}/{total} against {rate}");
        }
    }

    #[test]
    fn the_bound_has_the_values_of_the_specification() {
        for (failed, total, expected) in [
            (0.0, 720.0, 0.006_375_658),
            (0.0, 2880.0, 0.001_597_740),
            (7.0, 720.0, 0.025_288_450),
            (28.0, 2880.0, 0.016_356_562),
            (0.0, 60.0, 0.073_881_272),
            (144.0, 720.0, 0.247_680_565),
        ] {
            let bound = upper_bound(failed, total, 0.01);
            assert!((bound - expected).abs() < 5e-9, "{failed}/{total}: {bound}");
        }
    }

    #[test]
    fn without_results_every_rate_is_believable() {
        assert!((upper_bound(0.0, 0.0, 0.01) - 1.0).abs() < f64::EPSILON);
        assert!((upper_bound(5.0, 5.0, 0.01) - 1.0).abs() < 1e-9);
    }
}

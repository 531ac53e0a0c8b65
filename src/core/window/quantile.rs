//! The quantiles, and how many samples each needs.

/// A quantile, with the number of samples below which it would be a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantile {
    /// The median; from 2 samples on.
    P50,
    /// From 10 samples on.
    P90,
    /// From 20 samples on.
    P95,
    /// From 100 samples on.
    P99,
    /// From 1000 samples on.
    P999,
}

impl Quantile {
    /// Every quantile, in ascending order.
    pub const ALL: [Self; 5] = [Self::P50, Self::P90, Self::P95, Self::P99, Self::P999];

    /// As a number of thousandths.
    pub const fn per_mille(self) -> usize {
        match self {
            Self::P50 => 500,
            Self::P90 => 900,
            Self::P95 => 950,
            Self::P99 => 990,
            Self::P999 => 999,
        }
    }

    /// The fewest samples that it needs: enough that at least one is expected above it.
    pub const fn needs(self) -> usize {
        1000 / (1000 - self.per_mille())
    }

    /// Its rank among this many samples in ascending order, counted from 1.
    pub(super) const fn rank(self, samples: usize) -> usize {
        (samples * self.per_mille()).div_ceil(1000)
    }
}

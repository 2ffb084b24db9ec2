//! The ratio of two quantities that each window has, and how far it is off. Knows nothing of what they are.

/// Sums over windows of two quantities, of their squares and of their product.
#[derive(Debug, Default)]
pub(super) struct Ratio {
    pub(super) windows: f64,
    pub(super) of: f64,
    pub(super) to: f64,
    of_of: f64,
    of_to: f64,
    to_to: f64,
}

impl Ratio {
    /// Takes a window's two in.
    pub(super) fn note(&mut self, of: f64, to: f64) {
        self.windows += 1.0;
        self.of += of;
        self.to += to;
        self.of_of += of * of;
        self.of_to += of * to;
        self.to_to += to * to;
    }

    /// The one sum divided by the other.
    pub(super) fn value(&self) -> f64 {
        self.of / self.to
    }

    /// The sum over the windows of the squares by which the one is off the ratio's multiple of the other (the variance of a ratio of sums).
    pub(super) fn squares_off(&self) -> f64 {
        let ratio = self.value();
        (self.of_of - 2.0 * ratio * self.of_to + ratio * ratio * self.to_to).max(0.0)
    }
}

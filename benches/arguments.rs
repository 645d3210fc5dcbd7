//! Options of a benchmark: `--name value`.

/// What stands behind the name of a benchmark on its command line.
#[derive(Clone, Debug)]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// Of this process, but for the flag that cargo adds.
    #[must_use]
    pub fn from_env() -> Self {
        Self(std::env::args().skip(1).filter(|argument| argument != "--bench").collect())
    }

    /// The words, in order.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// The word behind a name, if both are there.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// As [`option`](Self::option), with a default.
    #[must_use]
    pub fn text(&self, name: &str, default: &str) -> String {
        self.option(name).unwrap_or(default).to_owned()
    }

    /// As [`option`](Self::option), a whole number with a default.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn count(&self, name: &str, default: usize) -> usize {
        self.option(name)
            .map_or(default, |word| word.parse().unwrap_or_else(|_| panic!("{name} takes a number")))
    }

    /// As [`count`](Self::count), any number.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn number(&self, name: &str, default: f64) -> f64 {
        self.option(name)
            .map_or(default, |word| word.parse().unwrap_or_else(|_| panic!("{name} takes a number")))
    }
}

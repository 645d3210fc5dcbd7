//! How a download is shown.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Is told how a fetch goes on.
pub trait FetchProgress {
    /// Something worth a line: which source is asked, why it is given up.
    fn message(&mut self, text: &str);

    /// A step begins: a file of `bytes` bytes, or, with 0, a step of unknown size.
    fn begin(&mut self, what: &str, bytes: u64);

    /// `bytes` more bytes have arrived.
    fn advance(&mut self, bytes: u64);

    /// The step begun last is over.
    fn end(&mut self);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl FetchProgress for Silent {
    fn message(&mut self, _text: &str) {}
    fn begin(&mut self, _what: &str, _bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn end(&mut self) {}
}

/// Lines and bars on stderr; bars only when stderr is a terminal.
#[derive(Debug, Default)]
pub struct ProgressBars {
    bar: Option<ProgressBar>,
}

impl ProgressBars {
    /// No bar yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl FetchProgress for ProgressBars {
    fn message(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn begin(&mut self, what: &str, bytes: u64) {
        self.end();
        let (bar, template) = if bytes == 0 {
            (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}")
        } else {
            (ProgressBar::new(bytes), "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

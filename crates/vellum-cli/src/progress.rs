//! Progress bars: on a terminal only, on standard error, at most ten times a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that counts bytes to `total`, or just bytes if that is not known.
pub fn bytes(what: &'static str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{msg} [{bar:30}] {percent:>3} % of {binary_total_bytes} at {binary_bytes_per_sec}",
        ),
        None => (ProgressBar::no_length(), "{msg} {binary_bytes} at {binary_bytes_per_sec}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    bar.with_style(style.progress_chars("=> ")).with_message(what)
}

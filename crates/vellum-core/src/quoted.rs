//! [`quoted`]: what an error says of a text that it refuses.

/// How many characters of a text an error quotes.
const QUOTED_MAX: usize = 300;

/// The beginning of a text, for an error that quotes it: whoever wrote it knows the rest.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

//! What processes tell each other: the control protocol at both its ends, hints where a holder is, and `vellum.toml`.
//!
//! An input says which, and the bytes. What is accepted must have been understood: written again and read again it is the same.
//! A holder answers whoever speaks in whole lines of requests, and hangs up on everybody else; one who asks takes the last
//! answer of a holder that speaks in lines of answers, and fails otherwise.

use vellum::fuzzing::{
    Holder, answer_again, ask, config_again, hint_again, is_progress, request_again,
};

use crate::input::Input;
use crate::run::on_runtime;

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    let which = input.u8();
    let bytes = input.rest();
    match which % 4 {
        0 => config(&String::from_utf8_lossy(bytes)),
        1 => same_again(bytes, hint_again),
        2 => holder(bytes),
        _ => asker(bytes),
    }
}

fn config(text: &str) {
    if let Some(again) = config_again(text) {
        assert_eq!(config_again(&again), Some(again));
    }
}

fn same_again(bytes: &[u8], again: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    if let Some(once) = again(bytes) {
        assert_eq!(again(&once), Some(once));
    }
}

/// A stranger says something to a holder that holds nothing.
fn holder(says: &[u8]) {
    let line = says.split_inclusive(|byte| *byte == b'\n').next().unwrap_or(says);
    let request = request_again(line).filter(|_| line.last() == Some(&b'\n'));
    // Who asks for a flatten and says no more has hung up, and is not answered.
    let flattens =
        request.as_ref().is_some_and(|request| contains(request, b"{\"do\":\"flatten\""));
    same_again(line, request_again);
    let heard = on_runtime(async {
        let home = tempfile::tempdir().expect("a directory can be made");
        let holder = Holder::new(home.path()).await.expect("a home can be opened");
        holder.asked(says).await
    });
    match heard {
        Ok(heard) => {
            assert!(request.is_some(), "an answer to something that is no request");
            let is_last = answer_again(&heard).is_some() && !is_progress(&heard);
            assert!(is_last || flattens && heard.is_empty(), "a request that is not answered");
        }
        Err(_) => assert!(request.is_none(), "a request that nobody answers"),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A holder says something to somebody who asks.
fn asker(says: &[u8]) {
    let lines: Vec<&[u8]> = says.split_inclusive(|byte| *byte == b'\n').collect();
    let last = lines.iter().find(|line| !is_progress(line));
    let expected = last.filter(|line| line.ends_with(b"\n")).and_then(|line| answer_again(line));
    let answer = on_runtime(async { ask(says).await });
    assert_eq!(answer.ok(), expected, "what a holder says and what is understood");
    if let Some(line) = last {
        same_again(line, answer_again);
    }
}

//! `vellum bitmap check`: an allocation bitmap against the objects.

use serde::Serialize;
use vellum::Vellum;
use vellum_core::ImageSpec;
use vellum_engine::Error;

use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Answer {
    complete: bool,
    objects: u64,
    said: u64,
    hidden: u64,
}

/// Compares. Ends with exit code 6 if the bitmap hides something.
pub async fn check(vellum: &Vellum, spec: &ImageSpec, output: &mut Output) -> Result {
    let found = vellum.compare_bitmap(spec).await?;
    let hidden = found.hidden.len() as u64;
    let answer =
        Answer { complete: found.is_complete, objects: found.there, said: found.said, hidden };
    if output.is_json() {
        output.json(&answer)?;
    } else if !answer.complete {
        output.line(&format!(
            "{spec} has {} objects, and no bitmap that is complete: it is in use, or was when its user died; `vellum bitmap build` makes one",
            answer.objects
        ))?;
    } else {
        output.line(&format!(
            "{spec} has {} objects, and its bitmap says so of {}",
            answer.objects, answer.said
        ))?;
    }
    match hidden {
        0 => Ok(()),
        _ => {
            let what = format!(
                "the bitmap of {spec} hides {hidden} objects that are there, so that reads do not see them; `vellum bitmap build` makes a new one"
            );
            Err(Error::corrupt(what).into())
        }
    }
}

//! [`Unfinished`]: an image that is being filled, under a name that shows it.
//!
//! Whoever fills an image may be stopped or die in the middle. Nobody should then find half an image under the name that was
//! meant, so the image gets that name only when it is complete. Until then it is called `NAME.importing-XXXXXXXX`, which shows in
//! a list what it is, and `vellum rm` removes it if nobody else can.

use vellum_core::name::NAME_LENGTH_MAX;
use vellum_core::{ImageName, ImageSpec};
use vellum_engine::{Error, ErrorKind, Result};
use vellum_image::CreateOptions;

use crate::Vellum;
use crate::vellum::Located;

/// How often another name is tried because one was taken.
const ATTEMPTS: usize = 10;

/// An image that is being filled. What is done with it goes by its id: others may rename it, or take its name.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The image, for now under a name of its own.
    pub located: Located,
    /// The name that it gets when it is complete.
    name: ImageName,
}

impl Vellum {
    /// Creates an empty image that is to be filled. `Exists` if an image has the name that is meant.
    pub async fn create_unfinished(
        &self,
        spec: &ImageSpec,
        size: u64,
        options: CreateOptions,
    ) -> Result<Unfinished> {
        self.refuse_taken(spec).await?;
        let mut attempt = 1;
        loop {
            let for_now = ImageSpec { image: name_for_now(&spec.image)?, ..spec.clone() };
            match self.create(&for_now, size, options.clone()).await {
                Err(error) if error.kind() == ErrorKind::Exists && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                created => {
                    return Ok(Unfinished { located: created?, name: spec.image.clone() });
                }
            }
        }
    }

    /// Gives a complete image its name. `Exists` if somebody took that meanwhile. Durable when it returns.
    pub async fn complete(&self, unfinished: &Unfinished) -> Result<()> {
        self.rename_located(&unfinished.located, &unfinished.name).await
    }
}

/// `NAME.importing-XXXXXXXX`, where a long `NAME` is cut short.
fn name_for_now(name: &ImageName) -> Result<ImageName> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).expect("the kernel gives random numbers");
    let end = format!(".importing-{:08x}", u32::from_le_bytes(random));
    let kept = name.as_str().floor_char_boundary(NAME_LENGTH_MAX - end.len());
    let name = format!("{}{end}", &name.as_str()[..kept]);
    ImageName::new(&name).map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_now_is_a_name_however_long_the_one_meant_is() {
        for name in ["a", "Debian 13", &"x".repeat(NAME_LENGTH_MAX), &"\u{e9}".repeat(64)] {
            let name = ImageName::new(name).unwrap();
            let first = name_for_now(&name).unwrap();
            let first = first.as_str();
            let kept = first.split(".importing-").next().unwrap();
            assert!(kept.len() < first.len() && name.as_str().starts_with(kept), "{first}");
            assert_ne!(first, name_for_now(&name).unwrap().as_str());
        }
    }
}

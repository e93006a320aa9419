//! Names of pools, images and snapshots, and how a user writes an image: `[pool/]image[@snap]`.
//!
//! A name has 1 to [`NAME_LENGTH_MAX`] bytes of UTF-8: letters of any script, digits, `. _ - + : %`, and spaces inside. It begins with
//! none of `. - +` and neither begins nor ends with a space. So nothing in it is taken for something else by a spec, a path, an
//! NBD export name or the reader of an option; a space is quoted in a shell and encoded in a URI, as everywhere. RBD allows
//! more (quotes, control characters, a leading dash); its namespaces, `pool/namespace/image`, are a pool each here, and the
//! spec of one is refused with words of its own.

use std::fmt;
use std::str::FromStr;

use crate::quoted::quoted;

/// The longest name, in bytes.
pub const NAME_LENGTH_MAX: usize = 128;

/// Why a name or a spec is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Nothing where a name must be.
    #[error("the {what} name is missing")]
    Missing {
        /// Of what.
        what: &'static str,
    },
    /// Too long.
    #[error("the {what} name '{text}' is longer than {NAME_LENGTH_MAX} bytes")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// The name.
        text: String,
    },
    /// A character that no name has.
    #[error(
        "the {what} name '{text}' contains {character:?}; use letters, digits and . _ - + : % and inner spaces"
    )]
    Character {
        /// Of what.
        what: &'static str,
        /// The name.
        text: String,
        /// The character.
        character: char,
    },
    /// A character at its beginning or end that names have inside.
    #[error(
        "the {what} name '{text}' {place} with {character:?}; it may begin with none of . - + and a space, and not end with a space"
    )]
    Edge {
        /// Of what.
        what: &'static str,
        /// The name.
        text: String,
        /// `begins` or `ends`.
        place: &'static str,
        /// The character.
        character: char,
    },
    /// Three parts, as some write a namespace.
    #[error(
        "'{0}' has more than one '/'; write [pool/]image[@snap], and give a namespace its own pool"
    )]
    Namespace(String),
    /// More than one snapshot.
    #[error("'{0}' has more than one '@'; write [pool/]image[@snap]")]
    Snapshots(String),
}

/// The rule at the head of this module.
fn check(what: &'static str, text: &str) -> Result<String, NameError> {
    if text.is_empty() {
        return Err(NameError::Missing { what });
    }
    if text.len() > NAME_LENGTH_MAX {
        return Err(NameError::TooLong { what, text: quoted(text) });
    }
    let bad_inside = |c: &char| !(c.is_alphanumeric() || " ._-+:%".contains(*c));
    let bad_first = text.chars().next().filter(|c| " .-+".contains(*c));
    let bad_last = text.chars().next_back().filter(|c| *c == ' ');
    if let Some(character) = text.chars().find(bad_inside) {
        return Err(NameError::Character { what, text: quoted(text), character });
    }
    let first = bad_first.map(|character| ("begins", character));
    match first.or(bad_last.map(|character| ("ends", character))) {
        Some((place, character)) => {
            Err(NameError::Edge { what, text: quoted(text), place, character })
        }
        None => Ok(text.to_owned()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(String);

        impl $name {
            /// A checked name.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check($what, text).map(Self)
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// The name of a pool within a home.
    PoolName, "pool"
}
name! {
    /// The name of an image within its pool.
    ImageName, "image"
}
name! {
    /// The name of a snapshot within its image.
    SnapshotName, "snapshot"
}

/// How a user names an image or a snapshot: `[pool/]image[@snap]`. Prints what it parses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ImageSpec {
    /// The pool; the home's `default` if it is not given.
    pub pool: Option<PoolName>,
    /// The image.
    pub image: ImageName,
    /// The snapshot, if one is meant.
    pub snapshot: Option<SnapshotName>,
}

impl FromStr for ImageSpec {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (path, snapshot) = match text.split_once('@') {
            Some((_, snapshot)) if snapshot.contains('@') => {
                return Err(NameError::Snapshots(quoted(text)));
            }
            Some((path, snapshot)) => (path, Some(SnapshotName::new(snapshot)?)),
            None => (text, None),
        };
        let (pool, image) = match path.split_once('/') {
            Some((_, image)) if image.contains('/') => {
                return Err(NameError::Namespace(quoted(text)));
            }
            Some((pool, image)) => (Some(PoolName::new(pool)?), image),
            None => (None, path),
        };
        Ok(Self { pool, image: ImageName::new(image)?, snapshot })
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pool) = &self.pool {
            write!(f, "{pool}/")?;
        }
        write!(f, "{}", self.image)?;
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_is_bad_where_it_stands_is_told_from_one_that_no_name_has() {
        for (name, said) in [
            (".", "begins with '.'"),
            ("-x", "begins with '-'"),
            (" x", "begins with ' '"),
            ("x ", "ends with ' '"),
            ("a*b", "contains '*'"),
            (".a*b", "contains '*'"),
        ] {
            let error = name.parse::<ImageName>().unwrap_err().to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
    }
    use proptest::prelude::*;

    #[test]
    fn an_error_quotes_the_beginning_of_what_it_refuses() {
        for text in ["x".repeat(100_000), "\u{fffd}".repeat(100_000), "a@b@c".repeat(1000)] {
            let error = text.parse::<ImageSpec>().unwrap_err().to_string();
            assert!((300..1500).contains(&error.len()) && error.contains("..."), "{error}");
        }
    }

    #[test]
    fn specs_that_mean_something() {
        let parts = |text: &str| {
            let spec: ImageSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
            let pool = spec.pool.map(|pool| pool.to_string());
            (pool, spec.image.to_string(), spec.snapshot.map(|snapshot| snapshot.to_string()))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts("vm"), (None, "vm".into(), None));
        assert_eq!(parts("fast/vm"), (some("fast"), "vm".into(), None));
        assert_eq!(parts("vm@s"), (None, "vm".into(), some("s")));
        assert_eq!(
            parts("fast/Debian 12%x:1@2026-11-23.a"),
            (some("fast"), "Debian 12%x:1".into(), some("2026-11-23.a"))
        );
    }

    #[test]
    fn specs_that_are_refused() {
        for bad in [
            "",
            "/",
            "@",
            "a/",
            "/a",
            "a@",
            "a@b@c",
            "a/b/c",
            "-rf",
            ".hidden",
            "a b ",
            " a",
            "a\nb",
            "a\0",
            "a'b",
            "a\\b",
            "+x",
            "a*",
            &"x".repeat(129),
        ] {
            assert!(bad.parse::<ImageSpec>().is_err(), "{bad:?}");
        }
        assert!(matches!(
            "pool/namespace/image".parse::<ImageSpec>(),
            Err(NameError::Namespace(_))
        ));
    }

    proptest! {
        #[test]
        fn any_text_parses_to_itself_or_is_refused(text in any::<String>()) {
            if let Ok(spec) = text.parse::<ImageSpec>() {
                prop_assert_eq!(spec.to_string(), text);
            }
        }
    }
}

//! [`ObjectStates`]: what a data object says of the units that lie in it.
//!
//! An object of a sparse image keeps the states of its units in an attribute, which changes in the same atomic step as its data:
//!
//! ```text
//! u8 1 | u8 binary logarithm of a unit | u8 form | form 0: u8 the state of all units
//!                                               | form 1: two bits a unit, four in a byte, the first in the low bits
//! ```
//!
//! There is one way to write given states, so that two who expect the same states expect the same bytes. An object without the
//! attribute is opaque, as objects of plain images are: it defines all of its units.

use std::ops::Range;

use vellum_core::State;

/// The most units in an object: their states take a kibibyte then.
pub const UNITS_MAX: u64 = 4096;

const VERSION: u8 = 1;
const UNIFORM: u8 = 0;
const EACH: u8 = 1;
const IN_BYTE: usize = 4;

/// What an object says of its units.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectStates {
    /// There is no object: it inherits everything.
    Absent,
    /// It defines all of its units: what is not there is zeros.
    Opaque,
    /// It says so itself, two bits a unit.
    Map(Box<[u8]>),
}

/// Why an attribute cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadStates {
    /// It begins with something else.
    #[error("it is of version {0}, which this program does not know")]
    Version(u8),
    /// It is of units that the image does not have.
    #[error("it tells of units of 2^{0} bytes, which the image does not have")]
    Unit(u8),
    /// It is not as long as the units need, says of one what cannot be, or says it in another way than is usual.
    #[error("its {0} bytes say nothing of this object's units")]
    Form(usize),
}

impl ObjectStates {
    /// Of one unit.
    pub fn get(&self, unit: u32) -> State {
        match self {
            Self::Absent => State::Inherited,
            Self::Opaque => State::Data,
            Self::Map(bits) => {
                let byte = bits.get(unit as usize / IN_BYTE).copied().unwrap_or(0);
                State::from_bits(byte >> shift(unit) & 3).unwrap_or(State::Inherited)
            }
        }
    }

    /// Whether there is an object.
    pub fn exists(&self) -> bool {
        *self != Self::Absent
    }

    /// The same but for some units, in an object of so many.
    #[must_use]
    pub fn with(&self, units: Range<u32>, to: State, all: u32) -> Self {
        let mut bits = self.bits(all);
        for unit in units {
            let byte = &mut bits[unit as usize / IN_BYTE];
            *byte = *byte & !(3 << shift(unit)) | (to as u8) << shift(unit);
        }
        Self::Map(bits)
    }

    /// Runs of one state within some units.
    pub fn runs(&self, units: Range<u32>) -> impl Iterator<Item = (Range<u32>, State)> + '_ {
        let mut at = units.start;
        std::iter::from_fn(move || {
            if at >= units.end {
                return None;
            }
            let (start, state) = (at, self.get(at));
            while at < units.end && self.get(at) == state {
                at += 1;
            }
            Some((start..at, state))
        })
    }

    /// How many of its units hold data.
    pub fn data_units(&self, all: u32) -> u32 {
        (0..all).filter(|unit| self.get(*unit) == State::Data).count() as u32
    }

    fn bits(&self, all: u32) -> Box<[u8]> {
        let bytes = (all as usize).div_ceil(IN_BYTE);
        match self {
            Self::Absent => vec![0; bytes].into(),
            Self::Opaque => {
                let mut bits = vec![0b01_01_01_01; bytes];
                clear_behind(&mut bits, all);
                bits.into()
            }
            Self::Map(bits) => bits.clone(),
        }
    }

    /// The attribute of an object of so many units of `1 << unit_shift` bytes; nothing if it has none.
    pub fn encode(&self, unit_shift: u8, all: u32) -> Vec<u8> {
        let Self::Map(bits) = self else { return Vec::new() };
        let first = self.get(0);
        if (1..all).all(|unit| self.get(unit) == first) {
            return vec![VERSION, unit_shift, UNIFORM, first as u8];
        }
        [&[VERSION, unit_shift, EACH], &bits[..]].concat()
    }

    /// What an attribute of an object of so many units says.
    ///
    /// # Errors
    /// If it is not exactly what [`encode`](Self::encode) makes.
    pub fn decode(bytes: &[u8], unit_shift: u8, all: u32) -> Result<Self, BadStates> {
        let form = BadStates::Form(bytes.len());
        let states = match bytes {
            [VERSION, shift, ..] if *shift != unit_shift => return Err(BadStates::Unit(*shift)),
            [VERSION, _, UNIFORM, state] => {
                let state = State::from_bits(*state).ok_or(form.clone())?;
                Self::Absent.with(0..all, state, all)
            }
            [VERSION, _, EACH, bits @ ..] if bits.len() == (all as usize).div_ceil(IN_BYTE) => {
                let known = (0..all).all(|unit| {
                    State::from_bits(bits[unit as usize / IN_BYTE] >> shift(unit) & 3).is_some()
                });
                let mut clean = bits.to_vec();
                clear_behind(&mut clean, all);
                if !known || clean != bits {
                    return Err(form);
                }
                Self::Map(bits.into())
            }
            [VERSION, ..] | [] => return Err(form),
            [version, ..] => return Err(BadStates::Version(*version)),
        };
        if states.encode(unit_shift, all) == bytes { Ok(states) } else { Err(form) }
    }
}

fn shift(unit: u32) -> u32 {
    2 * (unit % IN_BYTE as u32)
}

fn clear_behind(bits: &mut [u8], all: u32) {
    let used = all as usize % IN_BYTE;
    if let Some(last) = bits.last_mut().filter(|_| used > 0) {
        *last &= (1 << (2 * used)) - 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn states_are_written_in_one_way() {
        let none = ObjectStates::Absent;
        let one = none.with(1..2, State::Data, 6);
        assert_eq!(one.encode(12, 6), [1, 12, 1, 0b0100, 0]);
        assert_eq!(none.with(0..6, State::Zero, 6).encode(12, 6), [1, 12, 0, 2]);
        assert_eq!(ObjectStates::Opaque.encode(12, 6), [0; 0]);
        assert_eq!(ObjectStates::Opaque.with(5..6, State::Zero, 6).get(4), State::Data);
    }

    #[test]
    fn what_is_not_as_it_is_written_is_refused() {
        let bad: [&[u8]; 9] = [
            &[],
            &[2, 12, 0, 1],
            &[1, 11, 0, 1],
            &[1, 12, 0, 3],
            &[1, 12, 0],
            &[1, 12, 1, 0],
            &[1, 12, 1, 0b1100, 0],
            &[1, 12, 1, 0b0101_0101, 0b0101],
            &[1, 12, 1, 0b0100, 0b1_0000],
        ];
        for bytes in bad {
            assert!(ObjectStates::decode(bytes, 12, 6).is_err(), "{bytes:?}");
        }
    }

    fn state() -> impl Strategy<Value = State> {
        prop_oneof![Just(State::Inherited), Just(State::Data), Just(State::Zero)]
    }

    proptest! {
        #[test]
        fn states_agree_with_a_list(
            all in 1..40_u32,
            changes in prop::collection::vec((0..40_u32, 1..9_u32, state()), 0..9),
            opaque: bool,
        ) {
            let (mut states, mut list) = if opaque {
                (ObjectStates::Opaque, vec![State::Data; all as usize])
            } else {
                (ObjectStates::Absent, vec![State::Inherited; all as usize])
            };
            for (first, count, to) in changes {
                let units = first.min(all)..(first + count).min(all);
                states = states.with(units.clone(), to, all);
                list[units.start as usize..units.end as usize].fill(to);
            }
            prop_assert!((0..all).all(|unit| states.get(unit) == list[unit as usize]));
            let runs: Vec<_> = states.runs(0..all).flat_map(|(units, state)| units.map(move |_| state)).collect();
            prop_assert_eq!(&runs, &list);
            let written = states.encode(12, all);
            if let ObjectStates::Map(_) = states {
                prop_assert_eq!(ObjectStates::decode(&written, 12, all), Ok(states));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, all in 1..40_u32) {
            let _ = ObjectStates::decode(&bytes, 12, all);
        }
    }
}

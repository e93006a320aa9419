//! A mistake on purpose: the fuzzer must find it, or it is blind. Chance alone would need longer than the world has.

use crate::Target;
use crate::input::Input;

/// The target, which must fail.
pub(crate) const TARGET: Target = Target { name: "canary", body: look_at, memory_max: 1 << 16 };

/// What the input must say, one after the other.
const WORDS: [u32; 2] = [0x5645_4c4c, 0x7a7a_2121];

/// Panics where two words of four bytes are right.
pub fn look_at(data: &[u8]) {
    if data.len() < 16 {
        return;
    }
    let mut input = Input::new(data);
    if WORDS.into_iter().all(|word| input.u32() == word) {
        panic!("the canary was found");
    }
}

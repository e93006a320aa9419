//! The target `nbd_negotiation` as a program: for libFuzzer, or to run files again.
#![cfg_attr(fuzzing, no_main)]

vellum_fuzz::program!(nbd_negotiation);

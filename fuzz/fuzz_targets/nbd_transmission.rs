//! The target `nbd_transmission` as a program: for libFuzzer, or to run files again.
#![cfg_attr(fuzzing, no_main)]

vellum_fuzz::program!(nbd_transmission);

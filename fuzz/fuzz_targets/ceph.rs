//! The target `ceph` as a program: for libFuzzer, or to run files again.
#![cfg_attr(fuzzing, no_main)]

vellum_fuzz::program!(ceph);

//! The engine contract, the in-memory reference engine, and its wrappers

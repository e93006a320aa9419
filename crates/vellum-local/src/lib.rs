//! The embedded engine: a directory, a SQLite catalog, sparse files

//! Support for tests: processes, strangers' clients, a model disk

//! Vellum as a library: home, pools, images by name, serving, live operations

//! Images: the layering rules, above the engine contract

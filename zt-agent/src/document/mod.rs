//! Documents at the edge: YAML in, model types out, positions kept.

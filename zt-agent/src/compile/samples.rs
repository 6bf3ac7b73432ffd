//! Short ways to write models in tests.

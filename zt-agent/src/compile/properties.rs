//! What holds for every model.

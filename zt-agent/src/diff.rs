//! What has to be written so that the maps hold what the compiler wants.

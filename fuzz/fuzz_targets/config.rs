#![cfg_attr(fuzzing, no_main)]

zt_fuzz::binary!(zt_fuzz::config::check);

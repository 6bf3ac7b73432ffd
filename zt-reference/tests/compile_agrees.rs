//! SKELETON, no test yet: the compiler's tables and the reference agree.
//!
//! For `(world, questions)` of `zt_reference::generate::case_of`: compile
//! `world.model`, look the question's peer and entry up in the tables, judge
//! them with `zt_common::verdict`, and compare verdict, reason, rule name and
//! `would` with `world.answer(question)`. To be written when the compiler is
//! there.

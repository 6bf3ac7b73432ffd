//! What a policy means, sentence by sentence, each with an answer that was
//! worked out by hand.

mod cidr;
mod mistakes;
mod modes;
mod node;
mod peers;
mod precedence;
mod rules;

//! The `leadsman` command.

fn main() {}

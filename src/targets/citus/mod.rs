//! The shards of a Citus cluster.

pub mod balance;
mod solve;

//! The shards of a Citus cluster: what its catalogs say, which moves bring it into balance, and how that is shown.

pub mod balance;
pub mod catalog;
pub mod show;
mod solve;

//! Contains the only code that accesses git, GitHub, the database and other processes.
//!
//! *Architecture invariant:* types of third-party clients (octocrab, git2, sqlx) stay in this module and in
//! `targets`.

pub mod git;
pub mod github;
pub mod sim;
pub mod store;
pub mod supervisor;

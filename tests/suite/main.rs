//! Contains the tests that need no network, program or database server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on has failed")]

mod api;
mod balance;
mod cli;
mod declarations;
mod outside;
mod scenarios;
mod schemas;
mod store;
mod support;

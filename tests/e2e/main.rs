//! Tests the whole program with real OpenTofu and the embedded forge.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that can't go on has failed")]

mod bad_days;
mod citus;
mod citus_bad_days;
mod citus_cluster;
mod cluster;
mod conversation;
mod crashes;
mod found;
mod incidents;
mod kills;
mod kubernetes;
mod kubernetes_bad_days;
mod kubernetes_kinds;
mod kubernetes_random;
mod loop_closed;
mod postgres;
mod published;
mod secure;
mod stage;
mod traces;
mod webhooks;

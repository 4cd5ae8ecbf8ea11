//! Tests that need no network, program or database server.

mod api;
mod declarations;
mod schemas;
mod store;
mod support;

//! The whole house with real OpenTofu and the embedded forge.

mod bad_days;
mod conversation;
mod loop_closed;
mod stage;
mod webhooks;

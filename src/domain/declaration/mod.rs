//! A revision to instances: what the state repo says.
//!
//! Decides which instances there are, what each is made from, what it depends on, and what is wrong with any file.
//! Never hides one file behind another: loading returns everything that parsed and every problem found, and an
//! instance with a problem is stalled while the others go on. Never reads a clock or the world.
//! *Invariant:* the same content gives the same instances and digests, wherever it stands.

mod assemble;
pub mod closure;
mod desired;
mod document;
pub mod environment;
mod folder;
mod instance;
pub mod kinds;
pub mod load;
pub mod node;
mod remediation;
pub mod resolve;
pub mod schema;
pub mod select;
pub mod validate;
pub mod walk;

pub use crate::domain::declaration::desired::Desired;
pub use folder::FILES_MAX;
pub use instance::Instance;
pub use kinds::Kinds;
pub use load::{Loader, load};
pub use resolve::Reference;
pub use select::{Candidate, Selector};

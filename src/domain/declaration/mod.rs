//! Loads the declarations of a revision and resolves them to instances.
//!
//! Decides which instances are declared, the content and dependencies of each, and the problems of every file. Loading
//! returns everything that was parsed and all problems. An instance with a problem is stalled, and the others continue.
//! Never reads a clock or a target.
//! *Invariant:* equal content gives equal instances and digests, independent of its location.

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

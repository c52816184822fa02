//! Debian's archives: from signed indexes to the packages of a lock, and from a lock to .debs. What is downloaded here
//! is trusted only after its signature (signed indexes) or its hash (everything else) has been checked.

mod date;
mod keys;
mod lock;
mod mirrors;
mod obtain;
mod packages;
mod relation;
mod release;
mod repositories;
mod resolve;
mod suites;
mod update;

pub use date::rfc3339;
pub use lock::{ResolveLockError, resolve};
pub use mirrors::{DEBIAN, FILE, MirrorError, Mirrors, SECURITY};
pub use obtain::{obtain, places, wants};
pub use packages::{plain as is_package_name, proper_path as is_pool_path};
pub use repositories::{RepositoryError, differences as repository_differences, pin as pin_repositories};
pub use update::{Also, Updated, update};

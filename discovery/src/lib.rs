//! The discovery server of Outrigger: answers DNS queries for the mesh's services.
//!
//! [`records`] is what it tells, and its readers' half too.

pub mod records;

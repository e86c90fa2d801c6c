//! What the API promises, against a real cloud in a temporary folder.

mod filter;
mod fleets;
mod members;
mod openapi;
mod people;
mod requests;
mod rights;
mod roles;

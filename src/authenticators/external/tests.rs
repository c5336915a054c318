//! Decisions of a scripted authorizer, and what a request to it holds.

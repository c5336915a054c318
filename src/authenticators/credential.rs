//! Where a credential sits in a request.

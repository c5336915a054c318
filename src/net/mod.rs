//! Sockets that edgeward opens itself.

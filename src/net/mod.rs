//! SOCKETS: one accept loop and one WebSocket for every door and both legs.

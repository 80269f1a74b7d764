//! What an upstream may cost: timeouts, limits of its pool, overload; and a config that changes under load.

//! Surviving blocks per site; pure.

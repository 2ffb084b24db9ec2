//! Capability checks, load, attach, maps; the only room that speaks bpf(2), and the only unsafe code of the tracer.

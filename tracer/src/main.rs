//! The binary: parse, run, exit code.
fn main() {
    let t=std::time::Instant::now();
    let probe = leakscope::kernel::Probe::load(&Default::default()).unwrap_or_else(|e| {println!("{e}"); std::process::exit(1)});
    println!("{:?} {:?}", t.elapsed(), probe.link_mode());
    println!("{:?}", probe.verified_instructions());
}

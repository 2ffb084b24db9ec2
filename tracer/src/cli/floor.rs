//! `leakscope floor`: the same probes with programs that do nothing. Not for users: `cargo xtask bench` measures with it
//! what the kernel's part of a probe costs, and how long attaching and detaching take. It says on stdout where it stands
//! and when that was (CLOCK_MONOTONIC, nanoseconds): `attaching NS`, `attached NS`, `preparing NS`, `detaching NS`,
//! `detached NS`. It detaches as at a window's planned end.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use super::{args::FloorArguments, stop::Stop};
use crate::{
    budget::Choice,
    kernel::{ProbeOptions, close_links, monotonic_ns, require_capabilities},
    session::{Session, SessionOptions, check_target},
};

/// Runs until somebody asks to stop or the process ends.
pub(super) fn run(raw: &FloorArguments) -> anyhow::Result<ExitCode> {
    require_capabilities()?;
    check_target(raw.pid)?;
    let stop = Stop::listen()?;
    let mut session = Session::new(SessionOptions {
        probe: ProbeOptions {
            links: raw.links.map(Into::into),
            empty: true,
            ..ProbeOptions::default()
        },
        tier: Choice::Exact,
        ..SessionOptions::default()
    })?;
    say("attaching")?;
    session.follow(raw.pid)?;
    say("attached")?;
    while !stop.is_asked() && session.running() > 0 {
        session.step(Duration::MAX)?;
    }
    say("preparing")?;
    let ready = session.probe().ready_to_detach();
    say("detaching")?;
    session.detach(raw.pid);
    close_links(ready);
    say("detached")?;
    Ok(ExitCode::SUCCESS)
}

/// A word and the time, at once.
fn say(word: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{word} {}", monotonic_ns())?;
    out.flush()
}

//! How long blocks live and how large they are, beside a program of which that is known.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use leakscope_tests::{Tracer, require_kernel, require_victim};
use serde_json::Value;

/// `demo`. Ends with its standard input.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn number(of: &Value, path: &str) -> f64 {
    of.pointer(path).and_then(Value::as_f64).unwrap_or_default()
}

/// The blocks in a histogram, and the highest bound in it.
fn sum(site: &Value, list: &str, bound: &str) -> (f64, f64) {
    let all = site.pointer(&format!("/lives/{list}"));
    let all = all.and_then(Value::as_array).unwrap();
    let blocks = all.iter().map(|of| number(of, "/objects")).sum();
    let bounds = all.iter().map(|of| number(of, &format!("/{bound}")));
    (blocks, bounds.fold(0.0, f64::max))
}

/// A report of some seconds of `demo`.
fn report(program: &Path, tier: &str) -> Value {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let demo = Demo(command.spawn().expect("the victim starts"));
    let pid = demo.0.id().to_string();
    let arguments = ["-p", &pid, "--tier", tier, "--for", "8s"];
    let mut tracer = Tracer::start(&arguments).expect("leakscope starts");
    assert_eq!(tracer.end().expect("it ends").code(), 0);
    let text = std::fs::read(tracer.report_path()).expect("a report");
    serde_json::from_slice(&text).expect("JSON")
}

/// The site of blocks that a function has allocated.
fn site<'a>(report: &'a Value, function: &str) -> &'a Value {
    let named = |site: &Value| {
        let frames = site.get("frames").and_then(Value::as_array).unwrap();
        let name = |frame: &Value| frame.get("function").and_then(Value::as_str) == Some(function);
        site.get("kind").and_then(Value::as_str) == Some("heap") && frames.iter().any(name)
    };
    let sites = report.get("sites").and_then(Value::as_array).unwrap();
    let found = sites.iter().find(|site| named(site));
    found.unwrap_or_else(|| panic!("no site in {function}: {report}"))
}

#[test]
fn what_is_freed_at_once_is_temporary_and_what_stays_has_its_size_and_age() {
    let _turn = require_kernel!();
    let program = require_victim!("demo");
    let report = report(&program, "exact");
    let session = site(&report, "remember_session");
    let inuse = number(session, "/inuse_objects");
    let nearly_all = 0.99 * inuse..=inuse;
    // A session has 240 bytes.
    let (sized, largest) = sum(session, "sizes", "below_bytes");
    assert_eq!(largest, 256.0, "{session}");
    assert!(nearly_all.contains(&sized), "{session}");
    let (aged, oldest) = sum(session, "ages", "below_s");
    assert!(nearly_all.contains(&aged), "{session}");
    assert!((8.0..=16.0).contains(&oldest), "{session}");
    assert_eq!(
        number(session, "/lives/temporary_objects"),
        0.0,
        "{session}"
    );
    assert_eq!(sum(session, "freed", "below_s").0, 0.0, "{session}");
    assert_eq!(
        number(session, "/peak_bytes"),
        number(session, "/inuse_bytes")
    );
    let reply = site(&report, "render_reply");
    let temporary = number(reply, "/lives/temporary_objects");
    assert!(temporary > 0.8 * number(reply, "/alloc_objects"), "{reply}");
    let page = site(&report, "cached_page");
    assert!(number(page, "/lives/temporary_objects") > 0.0, "{page}");
    let process = report.pointer("/processes/0").unwrap();
    assert!(number(process, "/peak_inuse_bytes") >= number(process, "/inuse_bytes"));
    assert!(number(process, "/peak_rss_bytes") >= number(process, "/rss_bytes"));
    assert!(
        number(process, "/lives/temporary_objects") >= temporary,
        "{process}"
    );
}

#[test]
fn windows_see_what_is_freed_in_them() {
    let _turn = require_kernel!();
    let program = require_victim!("demo");
    let report = report(&program, "sampled");
    let reply = site(&report, "render_reply");
    let followed = number(reply, "/lives/followed_objects");
    assert!(followed > 0.0, "{reply}");
    assert!(
        number(reply, "/lives/temporary_objects") > 0.8 * followed,
        "{reply}"
    );
    let session = site(&report, "remember_session");
    let (blocks, largest) = sum(session, "sizes", "below_bytes");
    assert!(blocks > 0.0, "{session}");
    assert_eq!(largest, 256.0, "{session}");
}

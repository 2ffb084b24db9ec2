//! One request to a debuginfod server, and its answer into a file.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use ureq::{
    Agent,
    http::StatusCode,
    tls::{Certificate, RootCerts, TlsConfig},
};

/// A server that sends less than this in the time of a timeout is too slow (debuginfod-find(1)), bytes.
const LEAST: u64 = 100 << 10;

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// So many times a server may say that it is elsewhere.
const REDIRECTS: u32 = 5;

/// What a server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The file is written.
    Whole,
    /// It has none.
    Absent,
    /// Its file is too large.
    TooLarge,
}

/// Speaks HTTP and HTTPS.
pub(super) struct Http {
    timeout: Duration,
    longest: Duration,
    agent: OnceLock<Agent>,
}

impl Http {
    /// `timeout`: how long a server may say nothing. `longest`: how long one request may take.
    pub(super) fn new(timeout: Duration, longest: Duration) -> Self {
        Self {
            timeout,
            longest,
            agent: OnceLock::new(),
        }
    }

    /// Certificates are read when they are needed first.
    fn agent(&self) -> &Agent {
        self.agent.get_or_init(|| {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(REDIRECTS)
                .user_agent(concat!("leakscope/", env!("CARGO_PKG_VERSION")))
                .timeout_resolve(Some(self.timeout))
                .timeout_connect(Some(self.timeout))
                .timeout_recv_response(Some(self.timeout))
                .timeout_per_read(Some(self.timeout))
                .timeout_global(Some(self.longest))
                .tls_config(TlsConfig::builder().root_certs(authorities()).build())
                .build()
                .into()
        })
    }

    /// Asks for a file and writes it.
    ///
    /// # Errors
    /// The server cannot be reached, or fails, or is too slow; or the file cannot be written.
    pub(super) fn get(&self, url: &str, largest: u64, to: &mut File) -> Result<Answer, String> {
        let mut answer = self
            .agent()
            .get(url)
            .header("X-DEBUGINFOD-MAXSIZE", largest.to_string())
            .call()
            .map_err(|error| self.told(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Answer::Absent),
            // The server was told what is too large.
            StatusCode::NOT_ACCEPTABLE => return Ok(Answer::TooLarge),
            status => return Err(format!("it answers with status {status}")),
        }
        let body = answer.body_mut();
        if body.content_length().is_some_and(|length| length > largest) {
            return Ok(Answer::TooLarge);
        }
        let mut from = body.with_config().limit(u64::MAX).reader();
        let mut piece = vec![0; PIECE];
        let mut written = 0_u64;
        let mut last = (Instant::now(), 0_u64);
        loop {
            let length = match from.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.told(&ureq::Error::from(error))),
            };
            written = written.saturating_add(length as u64);
            if written > largest {
                return Ok(Answer::TooLarge);
            }
            let read = piece.get(..length).unwrap_or_default();
            to.write_all(read)
                .map_err(|error| format!("its file cannot be written: {error}"))?;
            if last.0.elapsed() >= self.timeout {
                if written.saturating_sub(last.1) < LEAST {
                    return Err(self.too_slow());
                }
                last = (Instant::now(), written);
            }
        }
        Ok(Answer::Whole)
    }

    fn told(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::Timeout(_) => self.too_slow(),
            error => error.to_string(),
        }
    }

    fn too_slow(&self) -> String {
        format!(
            "it is too slow, or silent (DEBUGINFOD_TIMEOUT is {} s)",
            self.timeout.as_secs()
        )
    }
}

/// Whom to believe: those whom this machine believes (`SSL_CERT_FILE` may name others), and where it has none, as in a container with
/// nothing but leakscope, those of Mozilla.
fn authorities() -> RootCerts {
    let own: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned())
        .collect();
    if own.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::Specific(Arc::new(own))
    }
}

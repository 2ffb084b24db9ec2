//! Who may ask. Over the Unix socket, whoever the file's mode lets in; over TCP, whoever has the token, and, where there is
//! none, programs on this machine, but not pages that a browser on it shows.

use std::{
    hint::black_box,
    io::Read as _,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use axum::http::{HeaderMap, Method, header};

use super::error::Refusal;

/// The least and most bytes of a token: 16 random bytes as hexadecimal digits can be guessed by nobody.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 32..=512;

/// Why a token file is not used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error(
        "the token file {} can be read by others (mode {mode:03o}); `chmod 600` it and write a new token",
        .path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds no token.
    #[error(
        "the token file {} must hold one line of {} to {} visible ASCII characters, such as `openssl rand -hex 32` prints",
        .path.display(), TOKEN_BYTES.start(), TOKEN_BYTES.end()
    )]
    Form {
        /// The file.
        path: PathBuf,
    },
}

/// The secret that clients must show.
#[derive(Clone)]
pub(super) struct Token(Vec<u8>);

impl Token {
    /// Reads a token file.
    pub(super) fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Vec::new();
        file.take(*TOKEN_BYTES.end() as u64 + 3)
            .read_to_end(&mut text)
            .map_err(failed)?;
        let token = text.trim_ascii();
        if !TOKEN_BYTES.contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Form {
                path: path.to_owned(),
            });
        }
        Ok(Self(token.to_owned()))
    }

    /// The token itself, for a client that shows it.
    pub(super) fn text(&self) -> String {
        // It is ASCII: `read` looked.
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Whether this is the token. The time it takes depends on the lengths alone.
    fn is(&self, shown: &[u8]) -> bool {
        let mut differ = u8::from(self.0.len() != shown.len());
        for (place, byte) in self.0.iter().enumerate() {
            let other = shown.get(place).copied().unwrap_or(!*byte);
            differ |= black_box(byte ^ other);
        }
        black_box(differ) == 0
    }
}

/// The token that must be shown now, wherever it is asked for: it can be replaced.
#[derive(Clone)]
pub(super) struct CurrentToken(Arc<RwLock<Token>>);

impl CurrentToken {
    /// This one, until another takes its place.
    pub(super) fn new(token: Token) -> Self {
        Self(Arc::new(RwLock::new(token)))
    }

    /// From now on only the token that the file holds now is let in.
    ///
    /// # Errors
    /// See [`TokenError`]; the old one stays.
    pub(super) fn read_again(&self, path: &Path) -> Result<(), TokenError> {
        let token = Token::read(path)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token;
        Ok(())
    }

    fn is(&self, shown: &[u8]) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is(shown)
    }
}

/// How a connection came in.
#[derive(Clone)]
pub(super) enum Entrance {
    /// Over the Unix socket.
    Socket,
    /// Over TCP, with the token that must be shown.
    Tcp(Option<CurrentToken>),
}

impl Entrance {
    /// Whether the request may be answered.
    pub(super) fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let Self::Tcp(token) = self else {
            return Ok(());
        };
        match token {
            // A probe of health need not know the secret, and learns nothing.
            Some(_) if path == "/healthz" => Ok(()),
            Some(token) => shown(headers)
                .filter(|shown| token.is(shown))
                .map(|_| ())
                .ok_or_else(Refusal::unauthorized),
            None => {
                if !is_local_host(headers) {
                    return Err(Refusal::forbidden(
                        "without a token only requests to localhost or a loopback address are answered; see the Host header",
                    ));
                }
                if !method.is_safe() && headers.contains_key(header::ORIGIN) {
                    return Err(Refusal::forbidden("web pages may change nothing here"));
                }
                Ok(())
            }
        }
    }
}

/// The bearer token of a request (RFC 6750, 2.1).
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// Whether the client meant this machine. A web page whose name was made to point here would say its own name.
fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::os::unix::fs::PermissionsExt as _;

    use axum::http::{HeaderMap, HeaderValue, Method};

    use super::{CurrentToken, Entrance, Token, TokenError};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    (*name).parse().unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn only_the_token_itself_is_let_in() {
        let entrance = Entrance::Tcp(Some(CurrentToken::new(Token(TOKEN.into()))));
        let admitted = |value: &str| {
            let headers = headers(&[("authorization", value)]);
            entrance.admit(&Method::GET, "/metrics", &headers).is_ok()
        };
        assert!(admitted(&format!("Bearer {TOKEN}")));
        assert!(admitted(&format!("bearer  {TOKEN}")));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Basic 0123456789abcdef0123456789abcdef",
            "Bearer 0123456789abcdef0123456789abcde",
            "Bearer 0123456789abcdef0123456789abcdee",
            "Bearer 0123456789abcdef0123456789abcdeff",
        ] {
            assert!(!admitted(wrong), "{wrong:?}");
        }
        assert!(
            entrance
                .admit(&Method::GET, "/metrics", &HeaderMap::new())
                .is_err()
        );
        assert!(
            entrance
                .admit(&Method::GET, "/healthz", &HeaderMap::new())
                .is_ok()
        );
    }

    #[test]
    fn another_token_takes_the_place_of_the_old_one_where_the_file_is_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let current = CurrentToken::new(Token(TOKEN.into()));
        let entrance = Entrance::Tcp(Some(current.clone()));
        let admitted = |token: &str| {
            let headers = headers(&[("authorization", &format!("Bearer {token}"))]);
            entrance.admit(&Method::GET, "/metrics", &headers).is_ok()
        };
        let other = TOKEN.replace('0', "f");
        std::fs::write(&path, "short").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(current.read_again(&path).is_err());
        assert!(admitted(TOKEN) && !admitted(&other));
        std::fs::write(&path, &other).unwrap();
        current.read_again(&path).unwrap();
        assert!(!admitted(TOKEN) && admitted(&other));
    }

    #[test]
    fn pages_of_a_browser_are_not_let_in_without_a_token() {
        let entrance = Entrance::Tcp(None);
        let admitted = |method: &Method, pairs: &[(&'static str, &str)]| {
            entrance.admit(method, "/", &headers(pairs)).is_ok()
        };
        for host in [
            "localhost:7117",
            "127.0.0.1",
            "127.0.0.1:7117",
            "[::1]:7117",
        ] {
            assert!(admitted(&Method::GET, &[("host", host)]), "{host}");
        }
        for host in ["evil.example:7117", "127.0.0.1.evil.example", "", "[::1"] {
            assert!(!admitted(&Method::GET, &[("host", host)]), "{host}");
        }
        let page = [("host", "localhost:7117"), ("origin", "http://a.example")];
        assert!(!admitted(&Method::POST, &page));
        assert!(admitted(&Method::POST, &[("host", "localhost:7117")]));
    }

    #[test]
    fn token_files_that_others_can_read_or_that_hold_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o640);
        assert!(matches!(Token::read(&path), Err(TokenError::Mode { .. })));
        mode(0o600);
        assert!(Token::read(&path).is_ok());
        for wrong in ["", "short\n", "two words that are long enough to be one\n"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(Token::read(&path), Err(TokenError::Form { .. })));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Read { .. })));
    }
}

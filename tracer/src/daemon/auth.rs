//! Who may ask. Over the Unix socket, whoever the file's mode lets in; over TCP, whoever has the token, and, where there is
//! none, programs on this machine, but not pages that a browser on it shows.

use std::{
    hint::black_box,
    io::Read as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use axum::http::{HeaderMap, Method, header};
use base64::{Engine as _, prelude::BASE64_STANDARD};

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
    /// Over TCP.
    Tcp {
        /// The token that must be shown.
        token: Option<CurrentToken>,
        /// The address that is listened on.
        address: SocketAddr,
    },
}

impl Entrance {
    /// Whether the request may be answered.
    pub(super) fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        // Whoever reads another one than we do would be told what is for somebody else (RFC 9112, 3.2).
        if headers.get_all(header::HOST).iter().count() > 1 {
            return Err(Refusal::bad_request("there are two Host headers"));
        }
        let Self::Tcp { token, address } = self else {
            return Ok(());
        };
        let host = host(headers);
        match token {
            // A probe of health need not know the secret, and learns nothing.
            Some(_) if path == "/healthz" && method.is_safe() => {}
            Some(token) if shown(headers).is_some_and(|shown| token.is(&shown)) => {}
            Some(_) => return Err(Refusal::unauthorized()),
            None if !host.is_some_and(is_loopback) => {
                return Err(Refusal::forbidden(
                    "without a token only requests to localhost or a loopback address are answered; see the Host header",
                ));
            }
            None => {}
        }
        // A browser sends the password that it was once given with what any page asks for.
        if !method.is_safe() {
            if !host.is_some_and(|host| is_own(host, address)) {
                return Err(Refusal::forbidden(
                    "the Host header names another address than this listener's: nothing is changed",
                ));
            }
            if headers.contains_key(header::ORIGIN) && !is_own_origin(headers) {
                return Err(Refusal::forbidden(
                    "pages of other origins may change nothing here",
                ));
            }
        }
        Ok(())
    }
}

impl Entrance {
    /// Whether the request may wait for an answer: there are few places for that, and a page of somebody else's could take them all in
    /// the name of who looks at it.
    pub(super) fn admit_waiting(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Self::Tcp { .. } = self else {
            return Ok(());
        };
        // What browsers say of where a request comes from (Fetch Metadata, 2.3); `none` is a person's own doing.
        let mut sites = headers.get_all("sec-fetch-site").iter();
        let is_foreign = sites.any(|site| site != "same-origin" && site != "none");
        if is_foreign || headers.contains_key(header::ORIGIN) && !is_own_origin(headers) {
            return Err(Refusal::forbidden(
                "pages of other origins may not wait for answers here",
            ));
        }
        Ok(())
    }
}

/// The token of a request: the bearer token (RFC 6750, 2.1) or the password of Basic (RFC 7617), whoever the user is.
fn shown(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, credentials) = value.split_at_checked(space)?;
    let credentials = credentials.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(credentials.to_owned());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut pair = BASE64_STANDARD.decode(credentials).ok()?;
    // A user has no colon in its name.
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair.split_off(colon + 1))
}

/// The host that the client meant, without its port.
fn host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    // An IPv6 address stands in brackets.
    name.strip_prefix('[')
        .map_or(Some(name), |name| name.strip_suffix(']'))
}

/// Whether it is this machine's loopback interface. A web page whose name was made to point here would say its own name.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether it is what is listened on: its address, or this machine's name where that is not only the loopback interface. Where all
/// addresses are listened on, any number is: only names can be made to lead here.
fn is_own(host: &str, listened_on: &SocketAddr) -> bool {
    let listened_on = listened_on.ip().to_canonical();
    if listened_on.is_loopback() {
        return is_loopback(host);
    }
    match host.parse::<IpAddr>() {
        Ok(address) => listened_on.is_unspecified() || address.to_canonical() == listened_on,
        Err(_) => {
            listened_on.is_unspecified() && is_loopback(host)
                || own_name().is_some_and(|name| host.eq_ignore_ascii_case(&name))
        }
    }
}

/// The name of this machine (`uname -n`).
fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Whether a request comes from a page of this listener: it says the same host and port (RFC 6454, 7).
fn is_own_origin(headers: &HeaderMap) -> bool {
    let (Some(origin), Some(host)) = (headers.get(header::ORIGIN), headers.get(header::HOST))
    else {
        return false;
    };
    origin
        .as_bytes()
        .strip_prefix(b"http://")
        .is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_bytes()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::os::unix::fs::PermissionsExt as _;

    use axum::http::{HeaderMap, HeaderValue, Method};
    use base64::{Engine as _, prelude::BASE64_STANDARD};

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

    fn entrance(token: Option<CurrentToken>, address: &str) -> Entrance {
        Entrance::Tcp {
            token,
            address: address.parse().unwrap(),
        }
    }

    fn basic(user: &str, password: &str) -> String {
        format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{user}:{password}"))
        )
    }

    #[test]
    fn only_the_token_itself_is_let_in() {
        let entrance = entrance(Some(CurrentToken::new(Token(TOKEN.into()))), "0.0.0.0:7117");
        let admitted = |value: &str| {
            let headers = headers(&[("authorization", value)]);
            entrance.admit(&Method::GET, "/metrics", &headers).is_ok()
        };
        assert!(admitted(&format!("Bearer {TOKEN}")));
        assert!(admitted(&format!("bearer  {TOKEN}")));
        assert!(admitted(&basic("anybody", TOKEN)));
        assert!(admitted(&basic("", TOKEN)));
        assert!(!admitted(&basic(TOKEN, "")));
        assert!(!admitted(&basic("anybody", &TOKEN[1..])));
        assert!(!admitted(&format!(
            "Basic {}",
            BASE64_STANDARD.encode(TOKEN)
        )));
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
        let entrance = entrance(Some(current.clone()), "127.0.0.1:7117");
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
        let entrance = entrance(None, "127.0.0.1:7117");
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
    fn two_hosts_are_one_too_many() {
        let entrances = [entrance(None, "127.0.0.1:7117"), Entrance::Socket];
        for entrance in entrances {
            let mut two = headers(&[("host", "localhost:7117")]);
            assert!(entrance.admit(&Method::GET, "/", &two).is_ok());
            two.append("host", HeaderValue::from_static("localhost:7117"));
            assert!(entrance.admit(&Method::GET, "/", &two).is_err());
        }
    }

    #[test]
    fn foreign_pages_take_no_places_of_those_who_wait() {
        let entrance = entrance(None, "127.0.0.1:7117");
        let admitted = |name: &'static str, value: &str| {
            let headers = headers(&[("host", "localhost:7117"), (name, value)]);
            entrance.admit_waiting(&headers).is_ok()
        };
        for site in ["cross-site", "same-site", "", "Same-Origin"] {
            assert!(!admitted("sec-fetch-site", site), "{site}");
        }
        for origin in ["http://evil.example", "null", "http://localhost:8000"] {
            assert!(!admitted("origin", origin), "{origin}");
        }
        assert!(admitted("sec-fetch-site", "none"));
        assert!(admitted("sec-fetch-site", "same-origin"));
        assert!(admitted("origin", "http://localhost:7117"));
        assert!(admitted("accept", "*/*"));
    }

    #[test]
    fn a_browser_that_knows_the_password_changes_nothing_for_pages_of_others() {
        let entrance = entrance(
            Some(CurrentToken::new(Token(TOKEN.into()))),
            "192.0.2.1:7117",
        );
        let admitted = |method: &Method, host: &str, origin: Option<&str>| {
            let password = basic("me", TOKEN);
            let mut pairs = vec![("authorization", password.as_str()), ("host", host)];
            pairs.extend(origin.map(|origin| ("origin", origin)));
            entrance.admit(method, "/", &headers(&pairs)).is_ok()
        };
        const OWN: &str = "192.0.2.1:7117";
        assert!(admitted(&Method::POST, OWN, None));
        assert!(admitted(&Method::POST, OWN, Some("http://192.0.2.1:7117")));
        assert!(admitted(&Method::GET, OWN, Some("http://evil.example")));
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            for origin in ["http://evil.example", "http://192.0.2.1:8000", "null", ""] {
                assert!(!admitted(&method, OWN, Some(origin)), "{method} {origin}");
            }
            for host in ["evil.example:7117", "192.0.2.2:7117", "localhost:7117", ""] {
                assert!(!admitted(&method, host, None), "{method} {host}");
            }
        }
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

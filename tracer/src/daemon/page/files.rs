//! The page's files, compressed when leakscope was built (`build.rs`). They ask for nothing from elsewhere, and may run nothing else.

use std::io::Read as _;

use axum::{
    extract::Path,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use flate2::read::GzDecoder;

use super::{Answer, Refusal, compressed, takes_gzip};

/// A file of the page.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: &'static str,
    /// Compressed.
    pub(super) gzip: &'static [u8],
    /// Of what it is uncompressed, bytes.
    pub(super) length: usize,
    /// Changes with the file.
    etag: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// What the page may do: run and draw by its own files, ask its own daemon, and make no markup of text.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// The page itself.
pub(super) async fn index(headers: HeaderMap) -> Answer {
    serve("index.html", &headers)
}

/// Another file.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Answer {
    serve(&name, &headers)
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "js")) => "text/javascript; charset=utf-8",
        Some((_, "svg")) => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

fn serve(name: &str, headers: &HeaderMap) -> Answer {
    let file = FILES
        .iter()
        .find(|file| file.name == name)
        .ok_or_else(|| Refusal::not_found("the page has no such file"))?;
    let is_known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|known| known.trim().trim_start_matches("W/") == file.etag);
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else if takes_gzip(headers) {
        compressed(Response::new(file.gzip.into()))
    } else {
        let mut text = Vec::with_capacity(file.length);
        GzDecoder::new(file.gzip)
            .read_to_end(&mut text)
            .map_err(|error| Refusal::internal(format!("cannot unpack the page: {error}")))?;
        Response::new(text.into())
    };
    for (name, value) in [
        (header::CONTENT_TYPE, media_type(file.name)),
        (header::ETAG, file.etag),
        // A newer daemon brings newer files.
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

//! The page for a browser: its files, what it is told of reports, and how it learns of newer ones.
//!
//! Owns the form of the page's own JSON, which no other program should read: it changes with the page. Every figure in it is one of the
//! report. It must not know how reports come about.

mod events;
mod files;
mod history;
mod live;
mod sheet;
#[cfg(test)]
mod tests;

use std::{io::Write as _, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Uri, header},
    response::Response,
    routing::get,
};
use flate2::{Compression, write::GzEncoder};

use super::{
    error::Refusal,
    query::{Base, Query},
    render::Key,
    routes::{Answer, App, answer, json},
    thread::Published,
};
use crate::report::{Difference, Filter, Site};

pub(super) use live::Live;

/// So many sites are told at most, the largest: a browser can still hold them.
const MOST_SITES: usize = 20_000;

/// The page's paths.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(files::index))
        .route("/page/{file}", get(files::file))
        .route("/api/v1/page", get(sheet))
        .route("/api/v1/page/process/{pid}/{incarnation}", get(process))
        .route("/api/v1/page/site/{pid}/{incarnation}/{id}", get(site))
        .route(EVENTS, get(events::events))
}

/// Where a page waits for events.
pub(super) const EVENTS: &str = "/api/v1/events";

/// Whether a client takes gzip. What refuses it by `q=0` is no browser.
fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim() == "gzip" || coding.trim().starts_with("gzip;"))
}

/// Says that a body is compressed.
fn compressed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    response
}

/// All that the page shows but details; with `base`, what has changed since a snapshot; with `new`, up to another.
async fn sheet(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Answer {
    let query = Query::read(&uri)?;
    let published = app.live.shown().await?;
    let gzip = takes_gzip(&headers);
    let body = match query.base {
        None => app.sheet(&published, gzip).await?,
        Some(Base::Snapshot(name, new)) => {
            app.changes(&published, &name, new.as_deref(), gzip).await?
        }
        Some(Base::After(_)) => {
            return Err(Refusal::bad_request("seconds are for /api/v1/report"));
        }
    };
    let response = answer("application/json", body);
    Ok(if gzip { compressed(response) } else { response })
}

impl App {
    /// The sheet of a report: written once, however many pages ask.
    pub(super) async fn sheet(&self, published: &Published, gzip: bool) -> Result<Bytes, Refusal> {
        let key = Key {
            number: published.number,
            format: format(gzip),
            query: String::new(),
        };
        let published = published.clone();
        self.renderer
            .render(Some(key), move |out| {
                let report = published.report.only(&Filter::default(), MOST_SITES);
                let sheet = sheet::Sheet::of_report(published.number, &report);
                write(&sheet, gzip, out)
            })
            .await
    }

    /// The sheet of what has changed since a snapshot, up to another or now.
    async fn changes(
        &self,
        published: &Published,
        name: &str,
        new: Option<&str>,
        gzip: bool,
    ) -> Result<Bytes, Refusal> {
        let base = self.snapshots.find(name)?;
        // Another snapshot may have got the name.
        let mut query = format!("{name} of {}", base.captured_at());
        let mut published = published.clone();
        if let Some(name) = new {
            let (captured_at, report) = self.kept(name).await?;
            query.push_str(&format!(" to {name} of {captured_at}"));
            // It stays the same, whatever is reported.
            published.number = 0;
            published.report = report;
        }
        let key = Key {
            number: published.number,
            format: format(gzip),
            query,
        };
        self.renderer
            .render(Some(key), move |out| {
                let base = base
                    .report()
                    .map_err(|refusal| std::io::Error::other(format!("{refusal:?}")))?;
                let difference = Difference::between(&base, &published.report).keep_top(MOST_SITES);
                let sheet =
                    sheet::Sheet::of_difference(published.number, &published.report, &difference);
                write(&sheet, gzip, out)
            })
            .await
    }
}

fn format(gzip: bool) -> &'static str {
    if gzip { "page, compressed" } else { "page" }
}

fn write(
    sheet: &sheet::Sheet<'_>,
    gzip: bool,
    out: &mut dyn std::io::Write,
) -> std::io::Result<()> {
    if !gzip {
        return serde_json::to_writer(out, sheet).map_err(Into::into);
    }
    let encoder = GzEncoder::new(out, Compression::fast());
    let mut encoder = std::io::BufWriter::with_capacity(1 << 16, encoder);
    serde_json::to_writer(&mut encoder, sheet)?;
    encoder.flush()?;
    encoder
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .finish()
        .map(|_| ())
}

/// A process with all that is known of it.
async fn process(
    State(app): State<Arc<App>>,
    Path((pid, incarnation)): Path<(u32, u32)>,
) -> Answer {
    let published = app.live.shown().await?;
    let found = published
        .report
        .processes
        .iter()
        .find(|process| (process.pid, process.incarnation) == (pid, incarnation));
    match found {
        Some(process) => json(&serde_json::json!({
            "number": published.number,
            "process": process,
        })),
        None => Err(Refusal::not_found(format!(
            "process {pid} is not traced any more"
        ))),
    }
}

/// A site with all that is known of it, and its memory over time.
async fn site(
    State(app): State<Arc<App>>,
    Path((pid, incarnation, id)): Path<(u32, u32, u64)>,
) -> Answer {
    let published = app.live.shown().await?;
    let is_it = |site: &&Site| (site.pid, site.incarnation, site.id) == (pid, incarnation, id);
    match published.report.sites.iter().find(is_it) {
        Some(site) => json(&serde_json::json!({
            "number": published.number,
            "duration_s": published.report.duration_s,
            "site": site,
            "series": app.live.series(&(pid, incarnation, id)),
        })),
        None => Err(Refusal::not_found(
            "nothing of what was allocated there is known any more",
        )),
    }
}

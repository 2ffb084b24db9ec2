//! The paths, and what each answers: views of reports. No handler computes a figure.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use axum::{
    Router,
    extract::{Path, State, path::ErrorKind, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{
    error::Refusal,
    page::{self, Live},
    query::{Base, Query},
    render::{Key, Renderer},
    serve::{Counters, SYMBOL},
    snapshots::{Snapshots, check_name},
    thread::{Published, Tracing, age},
};
use crate::report::{
    Difference, Filter, Format, Pprof, PprofAllocs, PprofGoroutines, PprofKernel, Process, Report,
    Style, Text, Timestamp,
    metrics::{self, Exposition},
};

/// Requests that wait for a later report at a time: each holds an earlier one.
const WAITING: usize = 8;

/// What the handlers share.
pub(super) struct App {
    pub(super) tracing: Tracing,
    pub(super) counters: Arc<Counters>,
    pub(super) renderer: Renderer,
    pub(super) snapshots: Snapshots,
    pub(super) live: Arc<Live>,
    waiting: Semaphore,
}

pub(super) type Answer = Result<Response, Refusal>;

/// What handlers share, and the tasks that tell pages of reports. To be called where tasks can be begun.
pub(super) fn app(tracing: Tracing, counters: Arc<Counters>) -> Arc<App> {
    let live = Live::new(tracing.clone());
    let app = Arc::new(App {
        tracing,
        counters,
        renderer: Renderer::default(),
        snapshots: Snapshots::default(),
        live: Arc::clone(&live),
        waiting: Semaphore::new(WAITING),
    });
    tokio::spawn(Arc::clone(&live).remember());
    tokio::spawn(live.tell(Arc::downgrade(&app)));
    app
}

/// All paths.
pub(super) fn router(tracing: Tracing, counters: Arc<Counters>) -> Router {
    Router::new()
        .merge(page::routes())
        .route("/debug/pprof/heap", get(heap))
        .route("/debug/pprof/allocs", get(allocs))
        .route("/debug/pprof/goroutine", get(goroutines))
        .route("/debug/pprof/kernel", get(kernel))
        .route(SYMBOL, get(symbol).post(symbol))
        .route("/flamegraph.svg", get(flame_graph))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(health))
        .route("/api/v1/report", get(report))
        .route("/api/v1/processes", get(processes))
        .route("/api/v1/snapshots", get(snapshots).post(keep_named))
        .route(
            "/api/v1/snapshots/{name}",
            post(keep).put(keep).get(snapshot).delete(forget),
        )
        .fallback(nothing_here)
        .method_not_allowed_fallback(async || Refusal::method_not_allowed())
        .with_state(app(tracing, counters))
}

async fn nothing_here(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(100).collect();
    Refusal::not_found(format!(
        "there is nothing at {path}; there are /debug/pprof/heap, /debug/pprof/allocs, /debug/pprof/goroutine, /debug/pprof/kernel, /flamegraph.svg, \
         /metrics, /healthz, /api/v1/report, /api/v1/processes, /api/v1/snapshots and / for a browser"
    ))
}

async fn heap(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    app.view(&uri, Some("pprof")).await
}

async fn allocs(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    app.view(&uri, Some("pprof-allocs")).await
}

async fn goroutines(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    app.view(&uri, Some("pprof-goroutines")).await
}

async fn kernel(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    app.view(&uri, Some("pprof-kernel")).await
}

/// There are names, as Go's own server says it (`net/http/pprof`, `Symbol`), and a profile has all of them: of other addresses none is known.
async fn symbol() -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        "num_symbols: 1\n",
    )
        .into_response()
}

async fn flame_graph(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    app.view(&uri, Some("svg")).await
}

async fn report(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    app.view(&uri, None).await
}

/// The format of a name.
fn format(name: &'static str, style: Style) -> Result<Arc<dyn Format>, Refusal> {
    match name {
        "text" => Ok(Arc::new(Text::new(style))),
        "pprof" => Ok(Arc::new(Pprof)),
        "pprof-allocs" => Ok(Arc::new(PprofAllocs)),
        "pprof-goroutines" => Ok(Arc::new(PprofGoroutines)),
        "pprof-kernel" => Ok(Arc::new(PprofKernel)),
        name => <dyn Format>::from_name(name)
            .map(Arc::from)
            .map_err(|error| Refusal::bad_request(error.to_string())),
    }
}

impl App {
    /// A report, or a difference, in the format of the path, or else of the query.
    async fn view(&self, uri: &Uri, of_path: Option<&'static str>) -> Answer {
        let query = Query::read(uri)?;
        if of_path.is_some() && query.format.is_some() {
            return Err(Refusal::bad_request(
                "this path has one format; /api/v1/report takes others",
            ));
        }
        let name = of_path.or(query.format).unwrap_or("json");
        let format = format(name, query.style)?;
        let top = query.top(name);
        let writer = Arc::clone(&format);
        let filter = query.filter.clone();
        let bytes = match query.base {
            None => {
                let published = self.tracing.warm().await?;
                self.check_filter(&published.report, &filter)?;
                let key = Key {
                    number: published.number,
                    format: name,
                    query: uri.query().unwrap_or_default().to_owned(),
                };
                let view = move |out: &mut dyn std::io::Write| {
                    let part = if filter.is_empty() && published.report.sites.len() <= top {
                        Cow::Borrowed(published.report.as_ref())
                    } else {
                        Cow::Owned(published.report.only(&filter, top))
                    };
                    writer.write(&part, out)
                };
                self.renderer.render(Some(key), view).await?
            }
            Some(_) if name == "pprof-kernel" => {
                return Err(Refusal::bad_request(
                    "objects of the kernel are compared by go tool pprof -diff_base",
                ));
            }
            Some(base) => {
                let (base, new) = self.two(&base).await?;
                self.check_filter(&new, &filter)?;
                let view = move |out: &mut dyn std::io::Write| {
                    let base = base
                        .report()
                        .map_err(|refusal| std::io::Error::other(format!("{refusal:?}")))?
                        .only(&filter, usize::MAX);
                    let new = new.only(&filter, usize::MAX);
                    let difference = Difference::between(&base, &new).keep_top(top);
                    writer.write_difference(&difference, out)
                };
                self.renderer.render(None, view).await?
            }
        };
        Ok(answer(format.media_type(), bytes))
    }

    /// The two reports that are to be compared.
    async fn two(&self, base: &Base) -> Result<(Earlier, Arc<Report>), Refusal> {
        match base {
            Base::Snapshot(name, new) => {
                let snapshot = self.snapshots.find(name)?;
                let new = match new {
                    Some(name) => self.kept(name).await?.1,
                    None => self.tracing.warm().await?.report,
                };
                Ok((Earlier::Snapshot(snapshot), new))
            }
            Base::After(wait) => {
                let _place = self.waiting.try_acquire().map_err(|_| {
                    Refusal::busy(format!(
                        "{WAITING} other requests wait for differences already; try later"
                    ))
                })?;
                let base = self.tracing.fresh().await?;
                tokio::time::sleep(*wait).await;
                let new = self.tracing.fresh().await?;
                Ok((Earlier::Report(base.report), new.report))
            }
        }
    }

    /// The report of a snapshot, and when it was. To read it takes a moment, in which others are answered.
    pub(super) async fn kept(&self, name: &str) -> Result<(Timestamp, Arc<Report>), Refusal> {
        let snapshot = self.snapshots.find(name)?;
        let captured_at = snapshot.captured_at();
        let report = tokio::task::spawn_blocking(move || snapshot.report())
            .await
            .map_err(|_| Refusal::internal("reading the snapshot failed"))??;
        Ok((captured_at, Arc::new(report)))
    }

    /// Says so if nothing that is traced is wanted, instead of an empty view.
    fn check_filter(&self, report: &Report, filter: &Filter) -> Result<(), Refusal> {
        for pid in &filter.pids {
            if !report.processes.iter().any(|process| process.pid == *pid) {
                return Err(Refusal::not_found(format!(
                    "process {pid} is not traced; /api/v1/processes lists those that are"
                )));
            }
        }
        if !filter.is_empty() && !report.processes.iter().any(|process| filter.wants(process)) {
            return Err(Refusal::not_found(
                "no traced process is what comm, cgroup and pid ask for; /api/v1/processes lists those that are traced",
            ));
        }
        Ok(())
    }
}

/// The earlier of two reports.
enum Earlier {
    Snapshot(super::snapshots::Snapshot),
    Report(Arc<Report>),
}

impl Earlier {
    fn report(&self) -> Result<Cow<'_, Report>, Refusal> {
        match self {
            Self::Snapshot(snapshot) => snapshot.report().map(Cow::Owned),
            Self::Report(report) => Ok(Cow::Borrowed(report)),
        }
    }
}

/// A successful answer. A browser shows it and does nothing else with it.
pub(super) fn answer(media_type: &'static str, body: impl Into<axum::body::Body>) -> Response {
    let mut response = Response::new(body.into());
    for (name, value) in [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:",
        ),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

pub(super) fn json(value: &impl Serialize) -> Answer {
    let mut text = serde_json::to_vec(value)
        .map_err(|error| Refusal::internal(format!("cannot write JSON: {error}")))?;
    text.push(b'\n');
    Ok(answer("application/json", text))
}

async fn processes(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    #[derive(Serialize)]
    struct Processes<'a> {
        captured_at: Timestamp,
        duration_s: f64,
        processes: Vec<&'a Process>,
    }
    let query = Query::read(&uri)?;
    let published = app.tracing.warm().await?;
    app.check_filter(&published.report, &query.filter)?;
    let report = &published.report;
    json(&Processes {
        captured_at: report.captured_at,
        duration_s: report.duration_s,
        processes: report
            .processes
            .iter()
            .filter(|process| query.filter.wants(process))
            .take(query.top.unwrap_or(usize::MAX))
            .collect(),
    })
}

async fn snapshots(State(app): State<Arc<App>>) -> Answer {
    json(&serde_json::json!({ "snapshots": app.snapshots.list() }))
}

/// A name in a path, checked.
fn name(path: Result<Path<String>, PathRejection>) -> Result<String, Refusal> {
    match path {
        Ok(Path(name)) => check_name(&name),
        Err(PathRejection::FailedToDeserializePathParams(error))
            if matches!(error.kind(), ErrorKind::InvalidUtf8InPathParam { .. }) =>
        {
            check_name("")
        }
        Err(error) => Err(Refusal::bad_request(error.body_text())),
    }
}

async fn keep_named(State(app): State<Arc<App>>, uri: Uri) -> Answer {
    let name = Query::read(&uri)?
        .name
        .ok_or_else(|| Refusal::bad_request("name the snapshot: /api/v1/snapshots?name=NAME"))?;
    app.keep(name).await
}

async fn keep(State(app): State<Arc<App>>, path: Result<Path<String>, PathRejection>) -> Answer {
    app.keep(name(path)?).await
}

impl App {
    async fn keep(self: Arc<Self>, name: String) -> Answer {
        let published = self.tracing.fresh().await?;
        let live = Arc::clone(&self.live);
        let listed =
            tokio::task::spawn_blocking(move || self.snapshots.keep(&name, &published.report))
                .await
                .map_err(|_| Refusal::internal("keeping the snapshot failed"))??;
        live.snapshots_changed();
        let mut response = json(&listed)?;
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    }
}

async fn snapshot(
    State(app): State<Arc<App>>,
    path: Result<Path<String>, PathRejection>,
) -> Answer {
    let snapshot = app.snapshots.find(&name(path)?)?;
    let profile = axum::body::Bytes::from_owner(snapshot.profile());
    Ok(answer(Pprof.media_type(), profile))
}

async fn forget(State(app): State<Arc<App>>, path: Result<Path<String>, PathRejection>) -> Answer {
    app.snapshots.delete(&name(path)?)?;
    app.live.snapshots_changed();
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn health(State(app): State<Arc<App>>, method: Method) -> Answer {
    app.tracing.check()?;
    let published = app.tracing.newest().await?;
    if method == Method::HEAD {
        return Ok(StatusCode::OK.into_response());
    }
    json(&serde_json::json!({
        "status": "ok",
        "report_age_s": age(&published.report).as_secs_f64(),
        "processes": published.report.processes.iter().filter(|process| !process.exited).count(),
    }))
}

async fn prometheus(State(app): State<Arc<App>>, headers: HeaderMap) -> Answer {
    let published = app.tracing.newest().await?;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    let exposition = Exposition::accepted(accept);
    let mut registry = Registry::with_prefix("leakscope");
    metrics::register(&published.report, &mut registry);
    own_metrics(&app.counters, &published, &mut registry);
    let text = metrics::write(&registry, exposition)
        .map_err(|error| Refusal::internal(format!("cannot write metrics: {error}")))?;
    Ok(answer(exposition.media_type(), text))
}

/// What the daemon says of itself.
fn own_metrics(counters: &Counters, published: &Published, registry: &mut Registry) {
    let requests = metrics::Counters::default();
    for (class, count) in Counters::CLASSES.into_iter().zip(&counters.answered) {
        requests
            .get_or_create(&vec![("code", class.to_owned())])
            .inc_by(count.load(Ordering::Relaxed));
    }
    registry.register("http_requests", "Requests answered, by status", requests);
    let turned_away: Counter = Counter::default();
    turned_away.inc_by(counters.turned_away.load(Ordering::Relaxed));
    registry.register(
        "http_connections_refused",
        "Connections turned away because there were too many",
        turned_away,
    );
    for (name, help, value) in [
        (
            "http_connections",
            "Connections that are open",
            counters.open.load(Ordering::Relaxed) as f64,
        ),
        (
            "report_making_seconds",
            "How long making the last report took",
            published.took.as_secs_f64(),
        ),
    ] {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

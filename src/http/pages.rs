//! The page at `/`: its files, embedded in the binary, and the headers that keep it to itself.
//!
//! Stands beside the doors and knows nothing of calls: the page is a client of `voxrelay.v1` like any other. Never reads
//! a file or a query.
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::IntoResponse as _,
    routing::get,
};

/// Only what this server itself sends may run, be shown or be called; nobody may frame the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One embedded file.
#[derive(Debug, Clone, Copy)]
struct Page {
    path: &'static str,
    kind: &'static str,
    content: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const PAGES: [Page; 7] = [
    Page { path: "/", kind: HTML, content: include_str!("../../assets/web/index.html") },
    Page { path: "/web/page.css", kind: CSS, content: include_str!("../../assets/web/page.css") },
    Page { path: "/web/page.js", kind: SCRIPT, content: include_str!("../../assets/web/page.js") },
    Page { path: "/web/turns.js", kind: SCRIPT, content: include_str!("../../assets/web/turns.js") },
    Page { path: "/web/strip.js", kind: SCRIPT, content: include_str!("../../assets/web/strip.js") },
    Page {
        path: "/web/voxrelay-client.js",
        kind: SCRIPT,
        content: include_str!("../../assets/web/voxrelay-client.js"),
    },
    Page { path: "/web/icon.svg", kind: SVG, content: include_str!("../../assets/web/icon.svg") },
];

/// A route for each file, for GET and HEAD.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    PAGES.into_iter().fold(Router::new(), |router, page| {
        router.route(page.path, get(move |headers: HeaderMap| async move { answer(page, &headers) }))
    })
}

/// The file, or that the browser has it already. Kept by browsers, but asked about each time: the next version of the
/// server may have another.
fn answer(page: Page, headers: &HeaderMap) -> Response<Body> {
    let tag = tag(page.content);
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    let mut response = if known.flat_map(|list| list.split(',')).any(|t| t.trim().trim_start_matches("W/") == tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, page.kind)], page.content).into_response()
    };
    let fixed = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Changes with the content.
fn tag(content: &str) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn get(path: &str, method: &str, tag: &str) -> Response<Body> {
        let request = Request::builder().method(method).uri(path).header(header::IF_NONE_MATCH, tag);
        let router: Router = routes();
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn text(response: Response<Body>) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn every_file_comes_with_its_type_and_the_policy() {
        for (path, kind, part) in [
            ("/", "text/html; charset=utf-8", "<!doctype html>"),
            ("/web/page.css", "text/css; charset=utf-8", "color-scheme"),
            ("/web/page.js", "text/javascript; charset=utf-8", "voxrelay-client.js"),
            ("/web/turns.js", "text/javascript; charset=utf-8", "export"),
            ("/web/strip.js", "text/javascript; charset=utf-8", "export"),
            ("/web/voxrelay-client.js", "text/javascript; charset=utf-8", "export class Call"),
            ("/web/icon.svg", "image/svg+xml", "<svg"),
        ] {
            let response = get(path, "GET", "").await;
            assert_eq!(response.status(), 200, "{path}");
            let header = |name| response.headers().get(name).unwrap().to_str().unwrap();
            assert_eq!(header("content-type"), kind, "{path}");
            assert!(header("content-security-policy").starts_with("default-src 'none';"), "{path}");
            assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
            assert_eq!(header("cache-control"), "no-cache", "{path}");
            assert!(text(response).await.contains(part), "{path}");
        }
    }

    #[tokio::test]
    async fn a_browser_that_has_a_file_is_told_so() {
        let tag = get("/", "GET", "").await.headers().get("etag").unwrap().to_str().unwrap().to_owned();
        for (asked, status) in [
            (tag.clone(), 304),
            (format!("\"other\", W/{tag}"), 304),
            ("\"other\"".to_owned(), 200),
            (tag.trim_matches('"').to_owned(), 200),
        ] {
            let response = get("/", "GET", &asked).await;
            assert_eq!(response.status(), status, "{asked}");
            assert_eq!(response.headers().get("etag").unwrap(), tag.as_str());
            assert_eq!(text(response).await.is_empty(), status == 304, "{asked}");
        }
        let script = get("/web/page.js", "GET", "").await;
        assert_ne!(script.headers().get("etag").unwrap(), tag.as_str(), "each file has its own");
    }

    #[tokio::test]
    async fn only_reading_is_allowed_and_only_what_is_there() {
        assert_eq!(get("/", "HEAD", "").await.status(), 200);
        for (path, method, status) in [
            ("/", "POST", 405),
            ("/web/page.js", "DELETE", 405),
            ("/web/", "GET", 404),
            ("/web/../serve.rs", "GET", 404),
            ("/index.html", "GET", 404),
        ] {
            assert_eq!(get(path, method, "").await.status(), status, "{method} {path}");
        }
    }

    /// A page that needs another server would break behind the policy, and without a network.
    #[test]
    fn no_file_reaches_for_another_server() {
        for page in PAGES {
            for (n, line) in page.content.lines().enumerate() {
                // The name of a namespace is no address.
                let foreign = line.contains("//cdn") || line.contains("src=\"http") || line.contains("url(http");
                assert!(!foreign && !line.contains("import(\"http"), "{}:{}: {line}", page.path, n + 1);
            }
        }
    }
}

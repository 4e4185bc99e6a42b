//! Which web pages may ask: those of this server, and those of the tenants' origins.
//!
//! A preflight brings no credential, so that it is answered for the origins of all tenants; the request itself is judged by its
//! own tenant's.
use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    middleware::{self, Next},
};

use crate::serve::Shared;

/// Answers that a page may read besides the usual ones.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Location, Retry-After, X-Request-Id, X-RateLimit-Limit-Requests, X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Requests, \
     X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Requests, X-RateLimit-Reset-Tokens, X-Voxrelay-Route, X-Voxrelay-Tier, \
     X-Voxrelay-Tier-By, X-Voxrelay-Waited-Ms, X-Voxrelay-Cost-Usd, X-Voxrelay-Repeated",
);
/// How long a browser may remember a preflight, seconds.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");

/// These routes, for pages too.
pub(crate) fn around(shared: &Arc<Shared>, routes: Router<Arc<Shared>>) -> Router<Arc<Shared>> {
    routes.layer(middleware::from_fn_with_state(shared.clone(), allow))
}

async fn allow(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response<Body> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(header::ORIGIN).cloned();
    let known = origin.filter(|origin| origin.to_str().is_ok_and(|origin| shared.gate.origin_is_known(origin, host)));
    let asks = request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        let mut response = next.run(request).await;
        open(response.headers_mut(), known);
        return response;
    }
    let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|names| is_list(names)).cloned();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = if known.is_some() { StatusCode::NO_CONTENT } else { StatusCode::FORBIDDEN };
    let headers = response.headers_mut();
    if known.is_some() {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
        wanted.map(|wanted| headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted));
    }
    open(headers, known);
    response
}

fn open(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

/// Names of headers.
fn is_list(names: &HeaderValue) -> bool {
    names.len() <= 1_024 && names.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_, ".contains(b))
}

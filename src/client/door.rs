//! Who may come in, before anything is upgraded: pure checks of a request's head.
use crate::config::is_loopback;

/// Whether a browser page of `origin` may call us. Without tenants there is no credential to ask for, so that only pages of
/// our own or of this machine are let in; programs send no `Origin`.
///
/// `open`: we were told to serve everybody, and a page of our own is one from the host that it calls.
pub fn origin_allowed(origin: Option<&str>, host: Option<&str>, open: bool) -> bool {
    let Some(origin) = origin else { return true };
    let Some((_, authority)) = origin.split_once("://") else { return false };
    if is_loopback(host_name(authority)) {
        return true;
    }
    // A name of somebody else's that points at this machine would match its own Host: rebinding. Not without being told.
    open && host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
}

/// `host:port` or `[v6]:port` without the port.
fn host_name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

#[test]
fn pages_of_strangers_stay_outside() {
    for (origin, host, open, want) in [
        (None, Some("127.0.0.1:8080"), false, true),
        (Some("http://127.0.0.1:8080"), Some("127.0.0.1:8080"), false, true),
        (Some("http://localhost:3000"), Some("127.0.0.1:8080"), false, true),
        (Some("http://[::1]:3000"), Some("127.0.0.1:8080"), false, true),
        (Some("https://evil.example"), Some("127.0.0.1:8080"), false, false),
        (Some("https://evil.example"), Some("evil.example"), false, false),
        (Some("https://voice.example"), Some("voice.example"), true, true),
        (Some("https://evil.example"), Some("voice.example"), true, false),
        (Some("null"), Some("127.0.0.1:8080"), false, false),
        (Some("https://localhost.evil.example"), Some("127.0.0.1"), false, false),
    ] {
        assert_eq!(origin_allowed(origin, host, open), want, "{origin:?} {host:?} {open}");
    }
}

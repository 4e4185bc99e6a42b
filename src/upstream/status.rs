//! A service's status page, asked now and then. What it means is read elsewhere ([`crate::admit::router::feed`]); a page that does not
//! answer in time, or answers something else, says nothing.
use std::time::Duration;

use rand::Rng as _;
use tokio::time;

use super::rest;
use crate::{admit::router::feed::Report, config::IncidentsConfig, net::tls};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pages that send us on more often are not followed.
const REDIRECTS: usize = 3;

/// One page.
#[derive(Debug, Clone)]
pub struct StatusPage {
    http: reqwest::Client,
    url: String,
    component: Option<String>,
    every: Duration,
}

impl StatusPage {
    /// The configured one; `None`: there is none.
    ///
    /// # Errors
    /// When the library cannot be set up.
    pub fn new(config: &IncidentsConfig) -> Result<Option<Self>, String> {
        let Some(url) = config.url.clone() else { return Ok(None) };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client()?)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
            .no_proxy()
            .timeout(PATIENCE)
            .user_agent(concat!("voxrelay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Some(Self { http, url, component: config.component.clone(), every: Duration::from_secs(config.poll_s) }))
    }

    /// Asks it for ever, and tells each answer; `None`: there was none.
    pub async fn watch(self, told: impl Fn(Option<Report>)) {
        loop {
            told(self.ask().await);
            // Relays that were started together do not come together.
            let pause = self.every.mul_f64(rand::rng().random_range(0.9..1.1));
            time::sleep(pause).await;
        }
    }

    async fn ask(&self) -> Option<Report> {
        let response = self.http.get(&self.url).send().await.ok()?;
        let page = rest::read(response.error_for_status().ok()?).await.ok()?;
        Report::read(&page, self.component.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::mpsc,
        task::JoinSet,
    };

    use super::*;
    use crate::admit::router::feed::Level;

    fn answer(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_page_is_read_each_time_and_what_is_no_page_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v2/summary.json", listener.local_addr().unwrap());
        let long = format!(r#"{{"status":"down","more":"{}"}}"#, "x".repeat(2 << 20));
        let answers = [
            answer(200, r#"{"status":{"indicator":"major"}}"#),
            answer(500, r#"{"status":"ok"}"#),
            answer(200, "<html>"),
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"status\"".to_owned(),
            answer(200, &long),
            "nonsense".to_owned(),
            answer(200, r#"{"status":"ok"}"#),
        ];
        let (count, mut tasks) = (answers.len(), JoinSet::new());
        tasks.spawn(async move {
            for answer in answers {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut head = [0; 4_096];
                let _ = tcp.read(&mut head).await;
                let _ = tcp.write_all(answer.as_bytes()).await;
                let _ = tcp.shutdown().await;
            }
        });
        let config = IncidentsConfig { url: Some(url), component: None, poll_s: 0 };
        let page = StatusPage::new(&config).unwrap().unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        tasks.spawn(page.watch(move |report| drop(tell.send(report))));
        let mut levels = Vec::new();
        while levels.len() < count {
            let report = time::timeout(PATIENCE * 2, told.recv()).await.unwrap().unwrap();
            levels.push(report.map(|report| report.level));
        }
        assert_eq!(levels, [Some(Level::Major), None, None, None, None, None, Some(Level::None)]);
        // Nobody listens there any more.
        assert_eq!(time::timeout(PATIENCE * 2, told.recv()).await.unwrap().unwrap(), None);
        assert!(StatusPage::new(&IncidentsConfig::default()).unwrap().is_none());
    }
}

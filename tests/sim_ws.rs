//! The simulated service over real sockets: handshakes, audio, pings, closes, and connections that die.
#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use futures_util::{SinkExt as _, StreamExt as _};
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::{Instant, timeout},
    };
    use tokio_tungstenite::{
        WebSocketStream, client_async,
        tungstenite::{self, Message, client::IntoClientRequest as _, handshake::client::Response, http::Request},
    };
    use voxrelay::sim::{
        Faults, Sim, SimConfig, SimStats,
        config::{Delay, Delays, Reply},
    };

    /// Far longer than anything here takes: a test that waits for it has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn at_once() -> SimConfig {
        SimConfig { reply: Reply { speed: 0.0, word_ms: 0, ..Reply::default() }, ..SimConfig::instant() }
    }

    async fn start(config: SimConfig, faults: &str) -> Sim {
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        Sim::start(addr, config, Faults::from_toml(faults).unwrap()).await.unwrap()
    }

    /// Waits until the counters say what is expected: they are written by another task.
    async fn until(sim: &Sim, what: impl Fn(&SimStats) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !what(&sim.stats()) {
            assert!(Instant::now() < end, "never came: {:?}", sim.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    struct Client(WebSocketStream<TcpStream>);

    fn request(sim: &Sim, query: &str, headers: &[(&'static str, &str)]) -> Request<()> {
        let mut request = format!("ws://{}/v1/realtime{query}", sim.addr()).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        request
    }

    async fn dial(request: Request<()>) -> Result<(Client, Response), tungstenite::Error> {
        let host = request.uri().authority().unwrap().as_str().to_owned();
        let tcp = TcpStream::connect(host).await.unwrap();
        let (ws, response) = client_async(request, tcp).await?;
        Ok((Client(ws), response))
    }

    async fn connect(sim: &Sim) -> Client {
        let request = request(sim, "?model=gpt-realtime", &[("authorization", "Bearer sk-good")]);
        dial(request).await.unwrap().0
    }

    impl Client {
        async fn send(&mut self, event: Value) {
            self.0.send(Message::text(event.to_string())).await.unwrap();
        }

        async fn message(&mut self) -> Option<Result<Message, tungstenite::Error>> {
            timeout(PATIENCE, self.0.next()).await.expect("something comes in time")
        }

        /// The next event.
        async fn event(&mut self) -> Value {
            loop {
                match self.message().await {
                    Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("expected an event, got {other:?}"),
                }
            }
        }

        /// All events up to and with the first of a type.
        async fn events_to(&mut self, kind: &str) -> Vec<Value> {
            let mut events = Vec::new();
            while events.last().is_none_or(|last: &Value| last["type"] != kind) {
                events.push(self.event().await);
            }
            events
        }

        /// Reads to the end: the close frame's code and reason, or 1006.
        async fn end(&mut self) -> (u16, String) {
            loop {
                match self.message().await {
                    Some(Ok(Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
                    Some(Ok(Message::Close(None))) => return (1_005, String::new()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return (1_006, String::new()),
                }
            }
        }

        async fn half_a_second(&mut self) {
            let vad = json!({ "type": "server_vad", "silence_duration_ms": 500 });
            self.send(json!({ "type": "session.update", "session": { "type": "realtime", "audio": { "input": { "turn_detection": vad } } } })).await;
            self.events_to("session.updated").await;
        }

        async fn say(&mut self, audio: &[u8]) {
            for piece in audio.chunks(4_800) {
                self.send(json!({ "type": "input_audio_buffer.append", "audio": STANDARD.encode(piece) })).await;
            }
        }
    }

    fn hello() -> Vec<u8> {
        let mut reader = hound::WavReader::open("assets/hello.wav").unwrap();
        reader.samples::<i16>().flat_map(|s| s.unwrap().to_le_bytes()).collect()
    }

    fn audio_of(events: &[Value]) -> Vec<u8> {
        let deltas = events.iter().filter(|e| e["type"] == "response.output_audio.delta");
        deltas.flat_map(|e| STANDARD.decode(e["delta"].as_str().unwrap()).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_spoken_clip_comes_back_byte_for_byte() {
        let sim = start(SimConfig { record_audio: true, ..at_once() }, "").await;
        assert_eq!(sim.base_url(), format!("http://{}/v1", sim.addr()));
        let mut client = connect(&sim).await;
        client.half_a_second().await;
        let audio = hello();
        client.say(&audio).await;
        let events = client.events_to("response.done").await;
        assert_eq!(audio_of(&events), audio[..5_120 * 48]);
        client.0.close(None).await.unwrap();
        until(&sim, |stats| stats.sessions_now == 0).await;
        let stats = sim.stats();
        assert_eq!((stats.sessions_opened, stats.commits, stats.responses), (1, 1, 1));
        assert_eq!((stats.appends, stats.append_bytes), (54, audio.len() as u64));
        assert_eq!((stats.delta_bytes, stats.deltas), (5_120 * 48, 26));
        assert_eq!(stats.recorded[0].audio, audio);
        assert_eq!(stats.closed_by_client[&1_005], 1);
    }

    #[tokio::test]
    async fn fifty_sessions_at_once_and_none_is_left() {
        let sim = start(at_once(), "").await;
        let audio = hello();
        let talk = |n: usize| {
            let (sim, audio) = (&sim, &audio[..48 * (1_000 + 20 * n)]);
            async move {
                let mut client = connect(sim).await;
                client.send(json!({ "type": "session.update", "session": { "type": "realtime", "audio": { "input": { "turn_detection": null } } } })).await;
                client.say(audio).await;
                client.send(json!({ "type": "input_audio_buffer.commit" })).await;
                client.send(json!({ "type": "response.create" })).await;
                assert_eq!(audio_of(&client.events_to("response.done").await), audio, "session {n}");
            }
        };
        futures_util::future::join_all((0..50).map(talk)).await;
        until(&sim, |stats| stats.sessions_now == 0).await;
        assert_eq!(sim.stats().sessions_opened, 50);
    }

    #[tokio::test]
    async fn the_verdict_comes_on_the_socket() {
        let sim = start(at_once(), "").await;
        let good = ("authorization", "Bearer sk-good");
        let realtime = "invalid_request_error";
        for (query, headers, code, reason) in [
            ("?model=gpt-realtime", vec![], 3_000, realtime.to_owned()),
            (
                "?model=gpt-realtime",
                vec![("authorization", "Bearer sk-bad1")],
                3_000,
                format!("{realtime}.invalid_api_key"),
            ),
            ("", vec![good], 4_000, format!("{realtime}.missing_model")),
            ("?model=gpt-5", vec![good], 4_000, format!("{realtime}.invalid_model")),
            ("?model=gpt-4o-realtime-preview", vec![good], 4_004, format!("{realtime}.model_not_found")),
            (
                "?model=gpt-realtime",
                vec![good, ("openai-beta", "realtime=v1")],
                4_000,
                format!("{realtime}.beta_api_shape_disabled"),
            ),
            (
                "?model=gpt-realtime",
                vec![("authorization", "Bearer sk-no-credit")],
                1_013,
                "insufficient_quota.insufficient_quota".into(),
            ),
        ] {
            let (mut client, response) = dial(request(&sim, query, &headers)).await.unwrap();
            assert_eq!(response.status(), 101, "always");
            assert!(response.headers().get("x-request-id").is_none());
            assert_eq!(client.event().await["type"], "error", "{query}");
            assert_eq!(client.end().await, (code, reason), "{query}");
        }
        let stats = sim.stats();
        assert_eq!((stats.sessions_opened, stats.attempts), (0, 7));
        assert_eq!((stats.closed_by_us[&3_000], stats.closed_by_us[&4_000]), (2, 3));
    }

    #[tokio::test]
    async fn a_browser_brings_its_key_as_a_subprotocol() {
        let sim = start(at_once(), "").await;
        let offer = "openai-insecure-api-key.sk-browser, realtime, openai-agents-sdk.1";
        let (mut client, response) =
            dial(request(&sim, "?model=gpt-realtime-2.1", &[("sec-websocket-protocol", offer)])).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "realtime", "and never the key");
        let session = &client.event().await["session"];
        assert_eq!(
            (session["model"].as_str(), &session["reasoning"]["effort"]),
            (Some("gpt-realtime-2.1"), &json!("low"))
        );
        let left = session["expires_at"].as_u64().unwrap()
            - std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((3_590..=3_601).contains(&left));
    }

    #[tokio::test]
    async fn some_are_refused_before_the_upgrade() {
        let faults = "[[fault]]\nkind = \"refuse\"\nsession = 1\nstatus = 429\nretry_after_s = 7\n\
                      [[fault]]\nkind = \"refuse\"\nsession = 2\nstatus = 503\nbody = \"busy\"";
        let sim = start(at_once(), faults).await;
        let refused = async |query: &str| match dial(request(&sim, query, &[("authorization", "Bearer k")])).await {
            Err(tungstenite::Error::Http(response)) => *response,
            other => panic!("should be refused: {:?}", other.map(|(_, response)| response)),
        };
        let limited = refused("?model=gpt-realtime").await;
        assert_eq!((limited.status().as_u16(), &limited.headers()["retry-after"]), (429, &"7".parse().unwrap()));
        let body: Value = serde_json::from_slice(limited.body().as_ref().unwrap()).unwrap();
        assert_eq!(body["error"]["code"], "rate_limit_exceeded");
        assert_eq!(refused("?model=gpt-realtime").await.body().as_deref(), Some(&b"busy"[..]));
        let unknown = refused("?call_id=rtc_1").await;
        assert_eq!((unknown.status().as_u16(), unknown.body().as_ref().map_or(0, Vec::len)), (404, 0));
        for (path, status) in [
            ("/v1/realtime?model=gpt-realtime", "426"),
            ("/v1/audio/transcriptions", "405"),
            ("/v1/audio/whispers", "404"),
        ] {
            let mut tcp = TcpStream::connect(sim.addr()).await.unwrap();
            tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let mut answer = String::new();
            tcp.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert!(answer.contains("\"error\":{\"message\""), "{answer}");
        }
        let stats = sim.stats();
        assert_eq!(stats.faults["refuse"], 2);
        assert_eq!((stats.refused[&429], stats.refused[&503], stats.refused[&404]), (1, 1, 1));
    }

    #[tokio::test]
    async fn a_connect_can_hang_or_be_slow() {
        let delays = Delays { connect: Delay::ms(150), ..Delays::none() };
        let sim = start(SimConfig { delays, ..at_once() }, "[[fault]]\nkind = \"hang\"\nsession = 2").await;
        let began = Instant::now();
        connect(&sim).await.event().await;
        assert!(began.elapsed() >= Duration::from_millis(150));
        let hanging = dial(request(&sim, "?model=gpt-realtime", &[("authorization", "Bearer k")]));
        assert!(timeout(Duration::from_millis(400), hanging).await.is_err(), "no 101");
        assert_eq!(sim.stats().faults["hang"], 1);
    }

    #[tokio::test]
    async fn a_connection_dies_in_the_middle_of_a_frame() {
        for (name, rest) in [("orderly", ""), ("reset", "reset = true")] {
            let fault = format!("[[fault]]\nkind = \"die\"\nresponse = 1\nafter_deltas = 3\nmid_frame = true\n{rest}");
            let sim = start(SimConfig::instant(), &fault).await;
            let mut client = connect(&sim).await;
            client.send(json!({ "type": "response.create" })).await;
            let mut deltas = 0;
            let end = loop {
                match client.message().await {
                    Some(Ok(Message::Text(text))) => {
                        deltas += usize::from(text.contains("response.output_audio.delta"))
                    }
                    other => break other,
                }
            };
            assert_eq!(deltas, 3, "{name}: what was sent before arrives");
            assert!(matches!(end, Some(Err(_))), "{name}: not a close frame but {end:?}");
            until(&sim, |stats| stats.sessions_now == 0).await;
            assert_eq!((sim.stats().faults["die"], sim.stats().closed_by_us[&1_006]), (1, 1), "{name}");
        }
    }

    #[tokio::test]
    async fn half_a_frame_is_really_on_the_wire() {
        let sim = start(SimConfig::instant(), "[[fault]]\nkind = \"die\"\nmid_frame = true").await;
        let mut tcp = TcpStream::connect(sim.addr()).await.unwrap();
        let head = "GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer k\r\nupgrade: websocket\r\n\
                    connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        timeout(PATIENCE, tcp.read_to_end(&mut bytes)).await.unwrap().unwrap();
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let frame = &bytes[at..];
        assert_eq!(frame[..2], [0x81, 126], "a text frame");
        let announced = usize::from(u16::from_be_bytes([frame[2], frame[3]]));
        assert_eq!(frame.len() - 4, announced / 2);
    }

    #[tokio::test]
    async fn pings_come_and_want_an_answer() {
        let sim = start(SimConfig { ping_ms: 30, pong_timeout_ms: 200, ..at_once() }, "").await;
        let mut client = connect(&sim).await;
        let mut pings = 0;
        while pings < 12 {
            if let Some(Ok(Message::Ping(payload))) = client.message().await {
                assert_eq!(payload.len(), 4);
                pings += 1;
            }
        }
        until(&sim, |stats| stats.pongs >= 10).await;
        // Whoever reads nothing answers nothing, and is cut off.
        until(&sim, |stats| stats.sessions_now == 0).await;
        assert_eq!(sim.stats().closed_by_us[&1_006], 1);
        assert_eq!(client.end().await.0, 1_006);
    }

    #[tokio::test]
    async fn the_service_says_goodbye_with_its_own_words() {
        let sim = start(SimConfig { session_cap_ms: 200, ..at_once() }, "").await;
        let mut client = connect(&sim).await;
        let events = client.events_to("error").await;
        assert_eq!(events[1]["error"]["code"], "session_expired");
        assert_eq!(client.end().await, (1_001, "Your session hit the maximum duration of 60 minutes.".into()));

        let sim = start(at_once(), "[[fault]]\nkind = \"close\"\nspeech = 1\ncode = 1012\nreason = \"restart\"").await;
        let mut client = connect(&sim).await;
        client.say(&hello()[..48 * 1_000]).await;
        assert_eq!(client.end().await, (1_012, "restart".into()));

        let sim = start(at_once(), "").await;
        let mut client = connect(&sim).await;
        client.event().await;
        let stopping = tokio::time::timeout(PATIENCE, sim.stop());
        let (stopped, end) = tokio::join!(stopping, client.end());
        assert_eq!((stopped.is_ok(), end.0), (true, 1_001));
    }

    /// Raw bytes of a client frame, masked with zeros.
    fn frame(head: &[u8], payload: &[u8]) -> Vec<u8> {
        [head, &[0; 4], payload].concat()
    }

    #[tokio::test]
    async fn framing_errors_have_their_close_codes() {
        let sim = start(at_once(), "").await;
        for (name, bytes, code) in [
            ("bad UTF-8", frame(&[0x81, 0x82], &[0xC3, 0x28]), 1_007),
            ("announced 32 MiB", frame(&[0x81, 0xFF, 0, 0, 0, 0, 2, 0, 0, 0], &[]), 1_009),
            ("unmasked", vec![0x81, 0x02, b'{', b'}'], 1_002),
            ("reserved bits", frame(&[0xF1, 0x82], b"{}"), 1_002),
        ] {
            let mut client = connect(&sim).await;
            client.event().await;
            client.0.get_mut().write_all(&bytes).await.unwrap();
            assert_eq!(client.end().await.0, code, "{name}");
        }
        let mut client = connect(&sim).await;
        client.event().await;
        client.0.send(Message::binary(vec![1, 2, 3])).await.unwrap();
        assert_eq!(client.event().await["error"]["code"], "invalid_event", "a binary frame is refused, no more");
        client.send(json!({ "type": "input_audio_buffer.clear" })).await;
        assert_eq!(client.event().await["type"], "input_audio_buffer.cleared");
    }

    #[tokio::test]
    async fn the_longest_append_is_taken() {
        let sim = start(at_once(), "").await;
        let mut client = connect(&sim).await;
        client.event().await;
        client.send(json!({ "type": "session.update", "session": { "type": "realtime", "audio": { "input": { "turn_detection": null } } } })).await;
        client.event().await;
        client.send(json!({ "type": "input_audio_buffer.append", "audio": "A".repeat(20_971_520) })).await;
        client.send(json!({ "type": "input_audio_buffer.commit" })).await;
        assert_eq!(client.event().await["type"], "input_audio_buffer.committed");
        assert_eq!(sim.stats().append_bytes, 15 << 20);
    }

    #[tokio::test]
    async fn reading_is_held_up() {
        for (name, fault, least) in [
            ("stalled", "kind = \"stall_read\"\nfor_ms = 400", 400),
            ("slow", "kind = \"slow_read\"\nbytes_per_s = 50000", 400),
        ] {
            let sim = start(at_once(), &format!("[[fault]]\n{fault}")).await;
            let mut client = connect(&sim).await;
            client.event().await;
            let began = Instant::now();
            for _ in 0..2 {
                client.send(json!({ "type": "input_audio_buffer.append", "audio": "A".repeat(24_000) })).await;
            }
            client.send(json!({ "type": "input_audio_buffer.clear" })).await;
            assert_eq!(client.event().await["type"], "input_audio_buffer.cleared");
            let took = began.elapsed().as_millis();
            // The clock of the fault runs from the 101, a little before ours.
            assert!(took >= least - 60, "{name}: {took} ms");
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_late_gets_everything() {
        let sim = start(at_once(), "").await;
        let mut client = connect(&sim).await;
        client.send(json!({ "type": "session.update", "session": { "type": "realtime", "audio": { "input": { "turn_detection": null } } } })).await;
        let minute: Vec<u8> = hello().iter().copied().cycle().take(48_000 * 60).collect();
        for _ in 0..4 {
            client.say(&minute).await;
            client.send(json!({ "type": "input_audio_buffer.commit" })).await;
            client.send(json!({ "type": "response.create" })).await;
        }
        // 15 MB of base64 are on their way, far more than the sockets hold.
        until(&sim, |stats| stats.commits == 4).await;
        let mut bytes = 0;
        for _ in 0..4 {
            bytes += audio_of(&client.events_to("response.done").await).len();
        }
        assert_eq!(bytes, 4 * minute.len());
    }
}

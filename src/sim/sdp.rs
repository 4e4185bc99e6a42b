//! A canned SDP answer (RFC 8829): every section of an offer is taken, at an address where nobody is.

/// SHA-256 of nobody's certificate.
const FINGERPRINT: &str =
    "5E:C1:0D:7A:3B:94:46:F0:12:8D:6C:A9:71:E5:38:02:BD:64:9F:27:D8:13:50:AE:C6:4B:09:F1:82:7D:35:EA";

/// One `m=` section of an offer.
#[derive(Default)]
struct Section<'o> {
    kind: &'o str,
    protocol: &'o str,
    formats: &'o str,
    mid: &'o str,
    opus: Option<&'o str>,
}

/// The answer; `None`: this is no offer of audio.
pub(super) fn answer(offer: &str) -> Option<String> {
    if !offer.starts_with("v=0") {
        return None;
    }
    let mut sections: Vec<Section<'_>> = Vec::new();
    for line in offer.lines().map(str::trim_end) {
        if let Some(media) = line.strip_prefix("m=") {
            let mut words = media.splitn(4, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (kind, _, protocol, formats) = (word(), word(), word(), word());
            sections.push(Section { kind, protocol, formats, ..Section::default() });
        }
        let Some(section) = sections.last_mut() else { continue };
        if let Some(mid) = line.strip_prefix("a=mid:") {
            section.mid = mid;
        }
        if let Some((number, "opus/48000/2")) = line.strip_prefix("a=rtpmap:").and_then(|map| map.split_once(' ')) {
            section.opus = Some(number);
        }
    }
    if !sections.iter().any(|section| section.kind == "audio" && section.opus.is_some()) {
        return None;
    }
    let mids: Vec<&str> = sections.iter().filter(|s| s.taken()).map(|s| s.mid).collect();
    let mut sdp = format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE {}\r\na=msid-semantic: WMS\r\n",
        mids.join(" ")
    );
    sections.iter().for_each(|section| section.answer(&mut sdp));
    Some(sdp)
}

impl Section<'_> {
    fn taken(&self) -> bool {
        self.kind == "application" || self.kind == "audio" && self.opus.is_some()
    }

    fn answer(&self, sdp: &mut String) {
        let Self { kind, protocol, formats, mid, opus } = self;
        if !self.taken() {
            sdp.push_str(&format!(
                "m={kind} 0 {protocol} {formats}\r\nc=IN IP4 0.0.0.0\r\na=mid:{mid}\r\na=inactive\r\n"
            ));
            return;
        }
        let formats = opus.unwrap_or(formats);
        sdp.push_str(&format!(
            "m={kind} 9 {protocol} {formats}\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:simu\r\na=ice-pwd:simulatedsimulatedsimulated\r\n\
             a=fingerprint:sha-256 {FINGERPRINT}\r\na=setup:active\r\na=mid:{mid}\r\n"
        ));
        match opus {
            Some(number) => {
                sdp.push_str(&format!("a=sendrecv\r\na=rtcp-mux\r\na=rtpmap:{number} opus/48000/2\r\n"));
            }
            None => sdp.push_str("a=sctp-port:5000\r\n"),
        }
    }
}

#[test]
fn every_section_is_answered_in_its_place() {
    let offer = "v=0\r\no=- 5 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1 2\r\n\
                 m=audio 9 UDP/TLS/RTP/SAVPF 63 111\r\na=mid:0\r\na=rtpmap:63 red/48000/2\r\na=rtpmap:111 opus/48000/2\r\n\
                 m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\n\
                 m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:2\r\na=sctp-port:5000\r\n";
    let answer = answer(offer).unwrap();
    let sections: Vec<&str> = answer.lines().filter(|line| line.starts_with("m=")).collect();
    assert_eq!(
        sections,
        [
            "m=audio 9 UDP/TLS/RTP/SAVPF 111",
            "m=video 0 UDP/TLS/RTP/SAVPF 96",
            "m=application 9 UDP/DTLS/SCTP webrtc-datachannel"
        ]
    );
    assert!(answer.contains("a=group:BUNDLE 0 2\r\n"), "{answer}");
    for wrong in ["", "v=0\r\n", "hello", "v=0\r\nm=video 9 X 1\r\n", "v=0\r\nm=audio 9 X 0\r\n"] {
        assert_eq!(super::sdp::answer(wrong), None, "{wrong}");
    }
}

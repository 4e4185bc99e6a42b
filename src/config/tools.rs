//! `[[agents.NAME.tools]]`: what a model may call, and which of it the relay runs itself.
use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Secret;
use crate::{phone::rest::Target, webhook::guard};

/// Headers that the relay writes by itself.
const OURS: [&str; 8] = [
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "idempotency-key",
    "host",
    "content-type",
    "content-length",
    "transfer-encoding",
];
/// A secret has so many characters at least, without the prefix `whsec_`.
const SHORTEST_SECRET: usize = 16;

/// A tool that every agent can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// Ends the call, once what was said before has been heard.
    HangUp,
    /// Takes the call to one of `targets`.
    Transfer,
    /// Presses keys.
    SendDtmf,
    /// Plays `hold_audio` to the caller.
    Hold,
    /// Asks the model behind `text.expert`, which writes and does not speak.
    AskExpert,
}

impl Builtin {
    fn name(self) -> &'static str {
        match self {
            Self::HangUp => "hang_up",
            Self::Transfer => "transfer",
            Self::SendDtmf => "send_dtmf",
            Self::Hold => "hold",
            Self::AskExpert => "ask_expert",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::HangUp => "Ends the call. Say goodbye first; the call ends when that has been heard.",
            Self::Transfer => {
                "Connects the caller with somebody else. Tell the caller first; it is done when that has been heard."
            }
            Self::SendDtmf => "Presses keys on the telephone, such as for a menu of an automatic system.",
            Self::Hold => "Puts the caller on hold for some seconds, with music.",
            Self::AskExpert => {
                "Asks an expert who thinks longer and knows more. Only for a hard question: it takes some seconds. Tell the caller what the \
                 expert says, in your own words."
            }
        }
    }

    fn parameters(self, targets: &BTreeMap<String, String>) -> Value {
        let of = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
        match self {
            Self::HangUp => of(json!({}), &[]),
            Self::Transfer => {
                let names: Vec<_> = targets.keys().collect();
                of(json!({"to": {"type": "string", "enum": names, "description": "Who to connect with"}}), &["to"])
            }
            Self::SendDtmf => {
                let what = "0 to 9, *, #, and w for half a second of pause";
                of(json!({"keys": {"type": "string", "description": what}}), &["keys"])
            }
            Self::Hold => of(json!({"seconds": {"type": "integer", "minimum": 1, "maximum": 300}}), &[]),
            Self::AskExpert => {
                let what = "The question, complete in itself";
                let more = "What the expert must know and was not said in the conversation, such as results of tools";
                let properties = json!({"question": {"type": "string", "description": what},
                    "context": {"type": "string", "description": more}});
                of(properties, &["question"])
            }
        }
    }
}

/// `[[agents.NAME.tools]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct ToolConfig {
    /// What the model calls it.
    pub name: String,
    /// What the model is told about it.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Value,
    /// What it does; none: the client, or whoever `http` says, knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin: Option<Builtin>,
    /// Where `builtin = "transfer"` may go: telephone numbers, or `sip:` addresses, by the names that the model uses.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, String>,
    /// How `builtin = "ask_expert"` asks; none: as usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<ExpertConfig>,
    /// The relay runs it by calling this; none: the client runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<WebhookConfig>,
}

/// As it is written: what every agent can have needs no words of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    builtin: Option<Builtin>,
    #[serde(default)]
    targets: BTreeMap<String, String>,
    expert: Option<ExpertConfig>,
    http: Option<WebhookConfig>,
}

impl From<Written> for ToolConfig {
    fn from(written: Written) -> Self {
        let Written { name, description, parameters, builtin, targets, expert, http } = written;
        let usual = |of: fn(Builtin) -> &'static str| builtin.map(of).unwrap_or_default().to_owned();
        Self {
            name: name.unwrap_or_else(|| usual(Builtin::name)),
            description: description.unwrap_or_else(|| usual(Builtin::description)),
            parameters: parameters.unwrap_or_else(|| match builtin {
                Some(builtin) => builtin.parameters(&targets),
                None => json!({"type": "object", "properties": {}}),
            }),
            builtin,
            targets,
            expert,
            http,
        }
    }
}

/// `[agents.NAME.tools.expert]`: how the expert is asked (docs/tools.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertConfig {
    /// The model goes on after so long, with what the expert has said by then, seconds.
    pub deadline_s: u64,
    /// How the expert shall answer.
    pub instructions: String,
    /// Turns of the conversation that it is told.
    pub turns: usize,
    /// Said while it takes long; empty: nothing.
    pub filler: String,
    /// How long the caller hears nothing before that, ms.
    pub filler_after_ms: u64,
    /// Longest answer, bytes; a longer one is cut off.
    pub max_bytes: usize,
}

impl Default for ExpertConfig {
    fn default() -> Self {
        Self {
            deadline_s: 20,
            instructions:
                "Answer in a few spoken sentences, in the language of the conversation, without lists, links or markup."
                    .to_owned(),
            turns: 10,
            filler: "One moment, I am asking an expert.".to_owned(),
            filler_after_ms: WebhookConfig::usual_filler_after(),
            max_bytes: WebhookConfig::usual_max_bytes(),
        }
    }
}

impl ExpertConfig {
    fn check(&self, section: &str, longest: u64, problem: &mut impl FnMut(&str, String, &str)) {
        for (field, found, least, most, unit) in [
            ("deadline_s", self.deadline_s, 1, longest, "seconds, which is call.tool_timeout_s"),
            ("turns", self.turns as u64, 0, 100, "turns"),
            ("filler_after_ms", self.filler_after_ms, 0, 10_000, "ms"),
            ("max_bytes", self.max_bytes as u64, 64, 1 << 20, "bytes"),
        ] {
            if !(least..=most).contains(&found) {
                problem(&format!("{section}.{field}"), found.to_string(), &format!("{least} to {most} {unit}"));
            }
        }
    }
}

/// `[agents.NAME.tools.http]`: a tool that the relay runs itself (docs/tools.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Where the arguments are sent to.
    pub url: String,
    /// Signs what is sent; one that begins with `whsec_` is base64.
    pub secret: Secret,
    /// All tries together may take so long, seconds; then the model is told.
    #[serde(default = "WebhookConfig::usual_timeout")]
    pub timeout_s: u64,
    /// Running it twice does no harm: it is tried again, also by the process that takes a call over.
    #[serde(default)]
    pub idempotent: bool,
    /// Further tries where it is idempotent.
    #[serde(default = "WebhookConfig::usual_retries")]
    pub retries: u32,
    /// Said while it takes long; none: silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filler: Option<String>,
    /// How long the caller hears nothing before that, ms.
    #[serde(default = "WebhookConfig::usual_filler_after")]
    pub filler_after_ms: u64,
    /// Largest result, bytes.
    #[serde(default = "WebhookConfig::usual_max_bytes")]
    pub max_bytes: usize,
    /// It may be at an address of this machine or of a private network.
    #[serde(default)]
    pub allow_private: bool,
    /// Further headers, such as `authorization`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
}

impl ToolConfig {
    /// How it asks the expert, if that is what it does.
    pub fn expert(&self) -> Option<ExpertConfig> {
        (self.builtin == Some(Builtin::AskExpert)).then(|| self.expert.clone().unwrap_or_default())
    }

    /// `longest`: how long any tool may take, seconds.
    pub(super) fn check(&self, section: &str, longest: u64, problem: &mut impl FnMut(&str, String, &str)) {
        if self.name.is_empty()
            || self.name.len() > 64
            || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        {
            problem(&format!("{section}.name"), format!("`{}`", self.name), "1 to 64 letters, digits, `-`, `_`");
        }
        if !self.parameters.is_object() {
            problem(&format!("{section}.parameters"), self.parameters.to_string(), "a JSON Schema object");
        }
        if self.builtin.is_some() && self.http.is_some() {
            problem(&format!("{section}.http"), "another way to run it".to_owned(), "nothing, with `builtin`");
        }
        if self.expert.is_some() && self.builtin != Some(Builtin::AskExpert) {
            let allowed = "nothing, without builtin = \"ask_expert\"";
            problem(&format!("{section}.expert"), "how an expert is asked".to_owned(), allowed);
        }
        if let Some(expert) = self.expert() {
            expert.check(&format!("{section}.expert"), longest, problem);
        }
        if (self.builtin == Some(Builtin::Transfer)) == self.targets.is_empty() {
            let found = if self.targets.is_empty() { "nothing" } else { "targets of something else" };
            let allowed = "names and numbers, with builtin = \"transfer\", and only there";
            problem(&format!("{section}.targets"), found.to_owned(), allowed);
        }
        for (name, to) in &self.targets {
            if Target::parse(to).is_err() {
                problem(
                    &format!("{section}.targets.{name}"),
                    format!("`{to}`"),
                    "`+` and 7 to 15 digits, or sip:user@host",
                );
            }
        }
        if let Some(http) = &self.http {
            http.check(&format!("{section}.http"), longest, problem);
        }
    }
}

impl WebhookConfig {
    fn usual_timeout() -> u64 {
        10
    }
    fn usual_retries() -> u32 {
        2
    }
    fn usual_filler_after() -> u64 {
        500
    }
    fn usual_max_bytes() -> usize {
        16 << 10
    }

    /// The key that signs; none: it is no base64.
    pub fn key(&self) -> Option<Vec<u8>> {
        match self.secret.expose().strip_prefix("whsec_") {
            Some(coded) => BASE64_STANDARD.decode(coded).ok(),
            None => Some(self.secret.expose().as_bytes().to_vec()),
        }
    }

    fn check(&self, section: &str, longest: u64, problem: &mut impl FnMut(&str, String, &str)) {
        let key = |field: &str| format!("{section}.{field}");
        for (field, found, least, most, unit) in [
            ("timeout_s", self.timeout_s, 1, longest, "seconds, which is call.tool_timeout_s"),
            ("retries", u64::from(self.retries), 0, 2, "tries"),
            ("filler_after_ms", self.filler_after_ms, 0, 10_000, "ms"),
            ("max_bytes", self.max_bytes as u64, 64, 1 << 20, "bytes"),
        ] {
            if !(least..=most).contains(&found) {
                problem(&key(field), found.to_string(), &format!("{least} to {most} {unit}"));
            }
        }
        if let Err((found, allowed)) = self.check_url() {
            problem(&key("url"), found, allowed);
        }
        let coded = self.secret.expose().strip_prefix("whsec_").is_some();
        if self.key().is_none_or(|key| key.len() < SHORTEST_SECRET) {
            let found = if coded { "`whsec_` and too little or no base64" } else { "a secret that is too short" };
            let allowed = "at least 16 characters, or `whsec_` and the base64 of at least 16 bytes";
            problem(&key("secret"), found.to_owned(), allowed);
        }
        if self.filler.as_ref().is_some_and(|filler| filler.trim().is_empty()) {
            problem(&key("filler"), "nothing".to_owned(), "a sentence, or no filler at all");
        }
        for (name, value) in &self.headers {
            let name_is_good = name.parse::<HeaderName>().is_ok_and(|name| !OURS.contains(&name.as_str()));
            if !name_is_good {
                problem(&key("headers"), format!("`{name}`"), "names of headers that the relay does not write itself");
            } else if HeaderValue::from_str(value.expose()).is_err() {
                let found = format!("something in `{name}` that no HTTP header can hold");
                problem(&key("headers"), found, "visible ASCII characters and spaces, no line ends");
            }
        }
    }

    fn check_url(&self) -> Result<(), (String, &'static str)> {
        let shown = || format!("`{}`", self.url.chars().take(64).collect::<String>());
        let url = reqwest::Url::parse(&self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| (shown(), "a URL such as `https://tools.example.com/look_up`"))?;
        // Whoever reads an error message shall not learn what it is good for.
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            let allowed = "a URL without user name, password and fragment: credentials stand in `headers`";
            return Err(("a URL with one of these in it".to_owned(), allowed));
        }
        if !self.allow_private && url.scheme() == "http" {
            return Err((shown(), "https; plain http only with allow_private = true"));
        }
        if !self.allow_private && guard::is_private_host(&url) {
            return Err((shown(), "a public address, or allow_private = true"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(http: &str) -> Vec<String> {
        let tool: ToolConfig = toml::from_str(&format!("name = \"look_up\"\nhttp = {{ {http} }}")).unwrap();
        let mut found = Vec::new();
        tool.check("tools[0]", 30, &mut |key, what, allowed| found.push(format!("{key}: {what}; {allowed}")));
        found
    }

    #[test]
    fn what_cannot_work_is_named_and_no_secret_is_shown() {
        let fine = "url = \"https://tools.example.com/x?a=b\", secret = \"0123456789abcdef\"";
        assert_eq!(problems(fine), [""; 0]);
        assert_eq!(
            problems("url = \"https://x.example\", secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\""),
            [""; 0]
        );
        assert_eq!(
            problems("url = \"http://[fd00::1]/\", secret = \"0123456789abcdef\", allow_private = true"),
            [""; 0]
        );
        for (http, part) in [
            (format!("{fine}, timeout_s = 31"), "timeout_s: 31; 1 to 30 seconds"),
            (format!("{fine}, timeout_s = 0"), "timeout_s: 0"),
            (format!("{fine}, retries = 3"), "retries: 3; 0 to 2"),
            (format!("{fine}, max_bytes = 2000000"), "max_bytes: 2000000; 64 to 1048576 bytes"),
            (format!("{fine}, filler = \" \""), "filler: nothing"),
            (format!("{fine}, headers = {{ Webhook-Id = \"x\" }}"), "headers: `Webhook-Id`"),
            (format!("{fine}, headers = {{ \"a b\" = \"x\" }}"), "headers: `a b`"),
            (format!("{fine}, headers = {{ x = \"hidden\\n\" }}"), "headers: something in `x`"),
            ("url = \"https://x.example\", secret = \"hidden\"".into(), "secret: a secret that is too short"),
            ("url = \"https://x.example\", secret = \"whsec_hidden-hidden-hidden\"".into(), "secret: `whsec_` and"),
            ("url = \"ftp://x.example\", secret = \"0123456789abcdef\"".into(), "url: `ftp://x.example`"),
            ("url = \"https://a:hidden@x.example\", secret = \"0123456789abcdef\"".into(), "url: a URL with one"),
            ("url = \"http://x.example\", secret = \"0123456789abcdef\"".into(), "url: `http://x.example`; https"),
            ("url = \"https://127.0.0.1/\", secret = \"0123456789abcdef\"".into(), "allow_private = true"),
            ("url = \"https://localhost:1/\", secret = \"0123456789abcdef\"".into(), "allow_private = true"),
            ("url = \"https://0x7f.1/\", secret = \"0123456789abcdef\"".into(), "allow_private = true"),
            ("url = \"https://[::ffff:10.0.0.1]/\", secret = \"0123456789abcdef\"".into(), "allow_private = true"),
        ] {
            let found = problems(&http);
            assert!(found.len() == 1 && found[0].contains(part), "{http} gave {found:?}, without {part:?}");
            assert!(!found[0].contains("hidden"), "{found:?}");
        }
        let tool: ToolConfig = toml::from_str(
            r#"
            name = "x"
            [http]
            url = "https://x.example"
            secret = "very-hidden-secret"
            headers = { authorization = "Bearer hidden" }
            "#,
        )
        .unwrap();
        assert!(!format!("{tool:?}{}", toml::to_string(&tool).unwrap()).contains("hidden"));
    }

    #[test]
    fn how_an_expert_is_asked_stands_where_one_is_asked() {
        let found = |tool: &str| {
            let tool: ToolConfig = toml::from_str(tool).unwrap();
            let mut found = Vec::new();
            tool.check("tools[0]", 30, &mut |key, what, allowed| found.push(format!("{key}: {what}; {allowed}")));
            found
        };
        let asks = "builtin = \"ask_expert\"";
        for fine in [asks, &format!("{asks}\nexpert = {{ deadline_s = 30, filler = \"\", turns = 0 }}")] {
            assert_eq!(found(fine), [""; 0], "{fine}");
        }
        let hook = "http = { url = \"https://x.example\", secret = \"0123456789abcdef\" }";
        for (tool, part) in [
            (format!("{asks}\nexpert = {{ deadline_s = 31 }}"), "tools[0].expert.deadline_s: 31; 1 to 30 seconds"),
            (format!("{asks}\nexpert = {{ turns = 101 }}"), "expert.turns: 101; 0 to 100 turns"),
            (format!("{asks}\nexpert = {{ max_bytes = 1 }}"), "expert.max_bytes: 1; 64"),
            (format!("{asks}\nexpert = {{ filler_after_ms = 20000 }}"), "expert.filler_after_ms: 20000; 0"),
            (format!("{asks}\n{hook}"), "tools[0].http: another way to run it"),
            (format!("{asks}\ntargets = {{ a = \"+15550123\" }}"), "tools[0].targets"),
            ("builtin = \"hold\"\nexpert = {}".into(), "tools[0].expert: how an expert is asked; nothing, without"),
            (format!("name = \"look_up\"\n{hook}\nexpert = {{}}"), "tools[0].expert"),
        ] {
            let found = found(&tool);
            assert!(found.len() == 1 && found[0].contains(part), "{tool} gave {found:?}, without {part:?}");
        }
        assert!(toml::from_str::<ToolConfig>(&format!("{asks}\nexpert = {{ timeout_s = 5 }}")).is_err());
        let usual: ToolConfig = toml::from_str(asks).unwrap();
        assert_eq!((usual.name.as_str(), usual.expert().unwrap().deadline_s), ("ask_expert", 20));
    }
}

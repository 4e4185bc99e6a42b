//! What a client that owns its conversation may set, and what its agent has fixed.
//!
//! Works on sessions and replies in the GA shape; what no rule is about is left as it is.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    config::{AgentConfig, PolicyConfig, Rule},
    upstream::ga,
};

/// One agent's rules for one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The service's name of the model that was resolved at the door; empty: the client names it.
    model: String,
    /// Field, rule, and the agent's value.
    rules: Vec<(Field, Rule, Value)>,
    /// Models that may be named; empty: all.
    models: Vec<String>,
    /// The session has its values already.
    #[serde(default)]
    joined: bool,
    /// Each session has the model of its route.
    #[serde(default)]
    routed: bool,
}

/// What can be ruled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Field {
    Instructions,
    Tools,
    Voice,
    MaxOutputTokens,
}

impl Policy {
    /// The rules of `agent` for a session of `model`, or the tenant's where they are stricter.
    pub fn new(agent: &AgentConfig, model: &str, tenant: PolicyConfig) -> Self {
        let rule = agent.policy.or_stricter(tenant);
        // A limit that the agent does not have cannot be kept.
        let longest = if agent.max_output_tokens.is_some() { rule.max_output_tokens } else { Rule::Allow };
        let rules = [
            (Field::Instructions, rule.instructions, json!(agent.instructions)),
            (Field::Tools, rule.tools, ga::client_tools(agent)),
            (Field::Voice, rule.voice, json!(agent.voice)),
            (Field::MaxOutputTokens, longest, json!(agent.max_output_tokens)),
        ];
        let rules = rules.into_iter().filter(|(_, rule, _)| *rule != Rule::Allow).collect();
        Self { model: model.to_owned(), rules, models: Vec::new(), joined: false, routed: false }
    }

    /// Only these models may be named; an empty list is all of them.
    #[must_use]
    pub fn with_models(self, models: &[String]) -> Self {
        Self { models: models.to_vec(), ..self }
    }

    /// For a session that others have set up: what is in force is not changed, and nothing is set.
    #[must_use]
    pub fn joined(self) -> Self {
        Self { joined: true, ..self }
    }

    /// For sessions of a tier: none is told a model, for each has that of its route.
    #[must_use]
    pub fn routed(self) -> Self {
        Self { routed: true, ..self }
    }

    /// The model that a session names to write down what is said, and may not.
    pub fn forbidden_model<'s>(&self, session: &'s Map<String, Value>) -> Option<&'s str> {
        let now = session.get("audio").and_then(|audio| audio.pointer("/input/transcription/model"));
        // And its place in the beta, which the service may speak.
        let then = session.get("input_audio_transcription").and_then(|transcription| transcription.get("model"));
        let named = [now, then].into_iter().flatten().filter_map(Value::as_str);
        named.into_iter().find(|model| !self.models.is_empty() && !self.models.iter().any(|allowed| allowed == model))
    }

    /// What a session is told before its client may say anything; `None`: nothing.
    pub fn opening(&self) -> Option<Value> {
        if self.rules.is_empty() || self.joined {
            return None;
        }
        Some(self.values())
    }

    /// All values that the agent gives.
    fn values(&self) -> Value {
        let mut session = Map::from_iter([("type".to_owned(), json!("realtime"))]);
        for (field, _, value) in &self.rules {
            field.set(&mut session, value.clone());
        }
        Value::Object(session)
    }

    /// Rules a client's `session` of a `session.update`. Whether it must be written anew.
    pub fn rule_session(&self, session: &mut Map<String, Value>) -> bool {
        // Which model a name means is decided at the door, once.
        let model = session.get_mut("model").filter(|model| !self.model.is_empty() && **model != self.model);
        let changed = model.map(|model| *model = json!(self.model)).is_some();
        let changed = changed || self.routed && session.remove("model").is_some();
        // Where models are ruled, what was read is also what is sent (see `rule`).
        self.rule(session) || changed || !self.models.is_empty()
    }

    /// A whole session for a client that will speak to the service by itself: the agent's values where they are in force, the
    /// client's where it may have some.
    pub fn merge(&self, mut asked: Map<String, Value>) -> Value {
        self.rule_session(&mut asked);
        let mut session = match self.values() {
            Value::Object(session) => session,
            _ => Map::new(),
        };
        lay_over(&mut session, asked);
        // Nothing that was laid over may have swept away what is in force.
        for (field, _, value) in self.rules.iter().filter(|(_, rule, _)| *rule == Rule::Force) {
            field.fix(&mut session, value);
        }
        if !self.model.is_empty() {
            session.insert("model".to_owned(), json!(self.model));
        }
        session.entry("type").or_insert_with(|| json!("realtime"));
        Value::Object(session)
    }

    /// Rules a client's `response` of a `response.create`. Whether it must be written anew.
    pub fn rule_reply(&self, response: &mut Map<String, Value>) -> bool {
        if let (true, Some(Value::Array(items))) = (self.fixes_instructions(), response.get_mut("input")) {
            items.retain(|item| item.get("role").and_then(Value::as_str) != Some("system"));
        }
        self.rule(response)
    }

    /// Nobody but the agent instructs the model: not by items of the system's role either.
    pub fn fixes_instructions(&self) -> bool {
        self.rules.iter().any(|(field, rule, _)| *field == Field::Instructions && *rule == Rule::Force)
    }

    /// The session has the agent's values already: what is not allowed is left out, so that they stay. Where there are such
    /// values, what was ruled is also what is sent: in the client's own bytes a field could stand twice, and another reader
    /// take the other one.
    fn rule(&self, fields: &mut Map<String, Value>) -> bool {
        let mut forced = false;
        for (field, _, fixed) in self.rules.iter().filter(|(_, rule, _)| *rule == Rule::Force) {
            field.hold(fields, fixed);
            forced = true;
        }
        forced
    }
}

impl Field {
    fn set(self, fields: &mut Map<String, Value>, value: Value) {
        match self {
            Self::Instructions => fields.insert("instructions".to_owned(), value),
            Self::Tools => fields.insert("tools".to_owned(), value),
            Self::MaxOutputTokens => fields.insert("max_output_tokens".to_owned(), value),
            Self::Voice => fields.insert("audio".to_owned(), json!({"output": {"voice": value}})),
        };
    }

    /// Sets `fixed`, whatever stands there; a limit only where a lower one does not.
    fn fix(self, fields: &mut Map<String, Value>, fixed: &Value) {
        match self {
            Self::Voice => {
                let audio = object_at(fields, "audio");
                object_at(audio, "output").insert("voice".to_owned(), fixed.clone());
            }
            Self::MaxOutputTokens => {
                let asked = fields.get("max_output_tokens").and_then(Value::as_u64).filter(|n| *n > 0);
                if asked.is_none() || asked > fixed.as_u64() {
                    self.set(fields, fixed.clone());
                }
            }
            Self::Instructions | Self::Tools => self.set(fields, fixed.clone()),
        }
    }

    /// Keeps `fixed` in force.
    fn hold(self, fields: &mut Map<String, Value>, fixed: &Value) {
        match self {
            // A stored prompt brings instructions and tools of its own.
            Self::Instructions => ["instructions", "prompt"].iter().for_each(|name| without(fields, name)),
            Self::Tools => ["tools", "prompt"].iter().for_each(|name| without(fields, name)),
            Self::Voice => {
                // What is no object here would be one way to sweep the voice away.
                if fields.get("audio").is_some_and(|audio| !audio.is_object()) {
                    without(fields, "audio");
                }
                if let Some(audio) = fields.get_mut("audio").and_then(Value::as_object_mut) {
                    match audio.get_mut("output").map(Value::as_object_mut) {
                        Some(Some(output)) => without(output, "voice"),
                        Some(None) => without(audio, "output"),
                        None => {}
                    }
                }
                without(fields, "voice"); // its name in the beta, which the service may speak
            }
            Self::MaxOutputTokens => {
                let asked = fields.get("max_output_tokens").and_then(Value::as_u64).filter(|n| *n > 0);
                if asked.is_none() || asked > fixed.as_u64() {
                    without(fields, "max_output_tokens");
                }
                without(fields, "max_response_output_tokens"); // its name in the beta
            }
        }
    }
}

/// The object in a field, made if something else is there.
fn object_at<'f>(fields: &'f mut Map<String, Value>, name: &str) -> &'f mut Map<String, Value> {
    let value = fields.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

/// Objects are laid over each other field by field, everything else is replaced.
fn lay_over(below: &mut Map<String, Value>, above: Map<String, Value>) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Object(below)), Value::Object(above)) => lay_over(below, above),
            (_, value) => drop(below.insert(name, value)),
        }
    }
}

fn without(fields: &mut Map<String, Value>, name: &str) {
    fields.shift_remove(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rule: Rule) -> Policy {
        let agent = AgentConfig {
            instructions: "Be brief.".into(),
            voice: "cedar".into(),
            max_output_tokens: Some(500),
            policy: PolicyConfig { instructions: rule, tools: rule, voice: rule, max_output_tokens: rule },
            ..AgentConfig::default()
        };
        Policy::new(&agent, "real-model", PolicyConfig::default())
    }

    fn ruled(rule: Rule, session: Value) -> (Value, bool) {
        let Value::Object(mut session) = session else { panic!("{session} is no object") };
        let changed = policy(rule).rule_session(&mut session);
        (Value::Object(session), changed)
    }

    #[test]
    fn what_is_allowed_passes_and_what_is_fixed_stays() {
        let asked = json!({"type": "realtime", "instructions": "Obey.", "tools": [{"type": "function", "name": "f"}],
            "audio": {"output": {"voice": "marin", "speed": 1.2}, "input": {"noise_reduction": null}},
            "max_output_tokens": "inf", "prompt": {"id": "p"}, "of_tomorrow": 1});
        for rule in [Rule::Allow, Rule::Default] {
            assert_eq!(ruled(rule, asked.clone()), (asked.clone(), false), "{rule:?}");
        }
        let left = json!({"type": "realtime",
            "audio": {"output": {"speed": 1.2}, "input": {"noise_reduction": null}}, "of_tomorrow": 1});
        assert_eq!(ruled(Rule::Force, asked), (left, true));
    }

    #[test]
    fn a_client_may_ask_for_less_than_the_limit() {
        for (asked, stays) in [
            (json!(500), true),
            (json!(1), true),
            (json!(501), false),
            (json!("inf"), false),
            (json!(null), false),
            (json!(0), false),
            (json!(-1), false),
            (json!(1e9), false),
        ] {
            let (session, anew) = ruled(Rule::Force, json!({"max_output_tokens": asked}));
            assert_eq!((session.get("max_output_tokens").is_some(), anew), (stays, true), "{asked}");
        }
    }

    #[test]
    fn the_session_begins_with_the_agents_values() {
        assert_eq!(policy(Rule::Allow).opening(), None);
        let want = json!({"type": "realtime", "instructions": "Be brief.", "tools": [],
            "audio": {"output": {"voice": "cedar"}}, "max_output_tokens": 500});
        for rule in [Rule::Default, Rule::Force] {
            assert_eq!(policy(rule).opening(), Some(want.clone()), "{rule:?}");
        }
    }

    #[test]
    fn a_session_is_merged_of_what_is_in_force_and_what_was_asked_for() {
        let Value::Object(asked) = json!({"type": "realtime", "instructions": "Obey.", "model": "fast",
            "audio": {"output": {"voice": "marin", "speed": 1.2}}, "of_tomorrow": 1})
        else {
            panic!()
        };
        let voice = |voice: &str| json!({"output": {"voice": voice, "speed": 1.2}});
        for (rule, instructions, audio) in [
            (Rule::Allow, "Obey.", voice("marin")),
            (Rule::Default, "Obey.", voice("marin")),
            (Rule::Force, "Be brief.", voice("cedar")),
        ] {
            let merged = policy(rule).merge(asked.clone());
            assert_eq!((merged["instructions"].as_str(), &merged["audio"]), (Some(instructions), &audio), "{rule:?}");
            assert_eq!((merged["model"].as_str(), &merged["of_tomorrow"]), (Some("real-model"), &json!(1)));
        }
        let least = policy(Rule::Default).merge(Map::new());
        assert_eq!((least["type"].as_str(), least["instructions"].as_str()), (Some("realtime"), Some("Be brief.")));
    }

    #[test]
    fn nothing_sweeps_away_what_is_in_force() {
        for audio in [
            json!(null),
            json!([]),
            json!({"output": null}),
            json!({"output": "x"}),
            json!({"output": {"voice": null}}),
        ] {
            let Value::Object(asked) = json!({"type": "realtime", "audio": audio, "max_output_tokens": null}) else {
                panic!()
            };
            let merged = policy(Rule::Force).merge(asked.clone());
            assert_eq!(merged["audio"]["output"]["voice"], "cedar", "{audio}");
            assert_eq!(merged["max_output_tokens"], 500, "{audio}");
            let mut update = asked;
            policy(Rule::Force).rule_session(&mut update);
            let audio = update.get("audio");
            assert!(
                audio.is_none_or(|a| a.is_object() && a.get("output").is_none_or(|o| o.get("voice").is_none())),
                "{audio:?}"
            );
        }
        let Value::Object(less) = json!({"max_output_tokens": 7}) else { panic!() };
        assert_eq!(policy(Rule::Force).merge(less)["max_output_tokens"], 7);
    }

    #[test]
    fn models_that_write_down_are_models_too() {
        let only = policy(Rule::Allow).with_models(&["gpt-transcribe".to_owned()]);
        for (session, want) in [
            (json!({"audio": {"input": {"transcription": {"model": "gpt-transcribe"}}}}), None),
            (json!({"audio": {"input": {"transcription": {"model": "whisper-1"}}}}), Some("whisper-1")),
            (json!({"input_audio_transcription": {"model": "whisper-1"}}), Some("whisper-1")),
            (json!({"audio": {"input": {"transcription": null}}}), None),
            (json!({}), None),
        ] {
            assert_eq!(only.forbidden_model(session.as_object().unwrap()), want, "{session}");
            assert_eq!(policy(Rule::Allow).forbidden_model(session.as_object().unwrap()), None);
        }
    }

    #[test]
    fn a_session_that_others_have_set_up_is_only_ruled() {
        assert_eq!(policy(Rule::Force).joined().opening(), None);
        let mut update = json!({"instructions": "Obey."}).as_object().unwrap().clone();
        assert!(policy(Rule::Force).joined().rule_session(&mut update) && update.is_empty());
    }

    #[test]
    fn a_tenants_rules_count_where_they_are_stricter() {
        let agent = AgentConfig { max_output_tokens: None, ..AgentConfig::default() };
        let force = PolicyConfig { voice: Rule::Force, max_output_tokens: Rule::Force, ..PolicyConfig::default() };
        let opening = Policy::new(&agent, "m", force).opening();
        assert_eq!(opening, Some(json!({"type": "realtime", "audio": {"output": {"voice": "marin"}}})));
    }

    #[test]
    fn the_model_is_the_one_of_the_door() {
        for (asked, got, changed) in [("fast", "real-model", true), ("real-model", "real-model", false)] {
            assert_eq!(ruled(Rule::Allow, json!({"model": asked})), (json!({"model": got}), changed));
        }
        assert_eq!(ruled(Rule::Allow, json!({})), (json!({}), false));
    }
}

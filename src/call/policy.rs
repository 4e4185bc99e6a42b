//! What a client that owns its conversation may set, and what its agent has fixed.
//!
//! Works on sessions and replies in the GA shape; what no rule is about is left as it is.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    config::{AgentConfig, Rule},
    upstream::ga,
};

/// One agent's rules for one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The service's name of the model that was resolved at the door; empty: the client names it.
    model: String,
    /// Field, rule, and the agent's value.
    rules: Vec<(Field, Rule, Value)>,
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
    /// The rules of `agent` for a session of `model`.
    pub fn new(agent: &AgentConfig, model: &str) -> Self {
        let rules = [
            (Field::Instructions, agent.policy.instructions, json!(agent.instructions)),
            (Field::Tools, agent.policy.tools, ga::tools(agent)),
            (Field::Voice, agent.policy.voice, json!(agent.voice)),
            (Field::MaxOutputTokens, agent.policy.max_output_tokens, json!(agent.max_output_tokens)),
        ];
        let rules = rules.into_iter().filter(|(_, rule, _)| *rule != Rule::Allow).collect();
        Self { model: model.to_owned(), rules }
    }

    /// What a session is told before its client may say anything; `None`: nothing.
    pub fn opening(&self) -> Option<Value> {
        if self.rules.is_empty() {
            return None;
        }
        let mut session = Map::from_iter([("type".to_owned(), json!("realtime"))]);
        for (field, _, value) in &self.rules {
            field.set(&mut session, value.clone());
        }
        Some(Value::Object(session))
    }

    /// Rules a client's `session` of a `session.update`. Whether it must be written anew.
    pub fn rule_session(&self, session: &mut Map<String, Value>) -> bool {
        // Which model a name means is decided at the door, once.
        let model = session.get_mut("model").filter(|model| !self.model.is_empty() && **model != self.model);
        let changed = model.map(|model| *model = json!(self.model)).is_some();
        self.rule(session) || changed
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

    /// Keeps `fixed` in force.
    fn hold(self, fields: &mut Map<String, Value>, fixed: &Value) {
        match self {
            // A stored prompt brings instructions and tools of its own.
            Self::Instructions => ["instructions", "prompt"].iter().for_each(|name| without(fields, name)),
            Self::Tools => ["tools", "prompt"].iter().for_each(|name| without(fields, name)),
            Self::Voice => {
                let output = fields.get_mut("audio").and_then(|audio| audio.get_mut("output"));
                output.and_then(Value::as_object_mut).into_iter().for_each(|output| without(output, "voice"));
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

fn without(fields: &mut Map<String, Value>, name: &str) {
    fields.shift_remove(name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PolicyConfig;

    fn policy(rule: Rule) -> Policy {
        let agent = AgentConfig {
            instructions: "Be brief.".into(),
            voice: "cedar".into(),
            max_output_tokens: Some(500),
            policy: PolicyConfig { instructions: rule, tools: rule, voice: rule, max_output_tokens: rule },
            ..AgentConfig::default()
        };
        Policy::new(&agent, "real-model")
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
    fn the_model_is_the_one_of_the_door() {
        for (asked, got, changed) in [("fast", "real-model", true), ("real-model", "real-model", false)] {
            assert_eq!(ruled(Rule::Allow, json!({"model": asked})), (json!({"model": got}), changed));
        }
        assert_eq!(ruled(Rule::Allow, json!({})), (json!({}), false));
    }
}

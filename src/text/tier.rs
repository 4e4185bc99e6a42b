//! Which model answers: the one that the caller names, or the tier that the rules say; and what quota and rights make of it. Pure.
use super::ask::Asked;
use crate::config::{TextConfig, TextRule, TextTier};

/// The model that leaves the choice to the rules.
pub const AUTO: &str = "auto";

/// Which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// A model, or one of `[tiers]`.
    pub name: String,
    /// The tier; none: the caller has named a model.
    pub tier: Option<TextTier>,
    /// Who has chosen: `caller`, `rule`, `default`; or why another one was taken: `scope`, `quota`.
    pub by: &'static str,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotChosen {
    /// There is no such tier.
    Unknown,
    /// It wants a scope that the caller has not.
    Scope,
}

/// Who asks, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// It may ask the expert.
    pub expert: bool,
}

/// Chooses. `is_short`: whether requests for what has this name would have to wait now.
///
/// # Errors
/// Why the caller gets none.
pub fn choose(
    config: &TextConfig,
    asked: &Asked,
    caller: Caller<'_>,
    is_short: impl Fn(&str) -> bool,
) -> Result<Chosen, NotChosen> {
    let of =
        |tier: TextTier, by| config.behind(tier).map(|name| Chosen { name: name.to_owned(), tier: Some(tier), by });
    if let Some(tier) = TextTier::named(&asked.model) {
        let chosen = of(tier, "caller").ok_or(NotChosen::Unknown)?;
        let forbidden = tier == TextTier::Expert && !caller.expert;
        return if forbidden { Err(NotChosen::Scope) } else { Ok(chosen) };
    }
    if asked.model != AUTO {
        return Ok(Chosen { name: asked.model.clone(), tier: None, by: "caller" });
    }
    let rule = config.rules.iter().find(|rule| fits(rule, asked, caller.tenant));
    let chosen = match rule.map(|rule| rule.tier) {
        None => of(TextTier::Fast, "default"),
        Some(TextTier::Expert) if !caller.expert => of(TextTier::Best, "scope"),
        Some(tier) => of(tier, "rule").or_else(|| of(TextTier::Best, "rule")),
    };
    let chosen = chosen.ok_or(NotChosen::Unknown)?;
    // An answer now is worth more than a better one later, where the caller has left it to us.
    if chosen.tier != Some(TextTier::Fast) && is_short(&chosen.name) && !is_short(&config.fast) {
        return of(TextTier::Fast, "quota").ok_or(NotChosen::Unknown);
    }
    Ok(chosen)
}

fn fits(rule: &TextRule, asked: &Asked, tenant: &str) -> bool {
    let traits = &asked.traits;
    rule.min_input_tokens.is_none_or(|least| asked.input_tokens >= least)
        && rule.tools.is_none_or(|tools| traits.tools == tools)
        && rule.schema.is_none_or(|schema| traits.schema == schema)
        && (rule.effort.is_empty() || traits.effort.as_ref().is_some_and(|effort| rule.effort.contains(effort)))
        && (rule.tenants.is_empty() || rule.tenants.iter().any(|name| name == tenant))
        && rule.metadata.iter().all(|(name, value)| traits.metadata.get(name).is_some_and(|found| found == value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::ask::response;

    #[test]
    fn the_caller_the_rules_the_rights_and_the_quota_choose() {
        let source = "fast = \"f\"\nbest = \"b\"\nexpert = \"e\"\n[[rules]]\ntier = \"expert\"\nmetadata = { difficulty = \"hardest\" }\n\
                      [[rules]]\ntier = \"best\"\ntools = true\nmin_input_tokens = 20\n[[rules]]\ntier = \"best\"\nschema = true\n\
                      [[rules]]\ntier = \"best\"\ntenants = [\"careful\"]\n[[rules]]\ntier = \"best\"\neffort = [\"high\"]";
        let config: TextConfig = toml::from_str(source).unwrap();
        let body = |more: serde_json::Value| {
            let mut body = json!({"model": "auto", "input": "Hello, how are you today?"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            response(body.to_string().as_bytes(), 100).unwrap()
        };
        let tools =
            json!([{"type": "function", "name": "look_up_an_order", "description": "Finds an order by its number."}]);
        let plain = Caller { tenant: "acme", expert: false };
        let trusted = Caller { expert: true, ..plain };
        let careful = Caller { tenant: "careful", ..plain };
        let nothing: &[&str] = &[];
        for (what, caller, short, want) in [
            (json!({}), plain, nothing, Ok(("f", "default"))),
            (json!({"tools": tools}), plain, nothing, Ok(("b", "rule"))),
            (json!({"tools": []}), plain, nothing, Ok(("f", "default"))),
            (json!({"text": {"format": {"type": "json_schema"}}}), plain, nothing, Ok(("b", "rule"))),
            (json!({"reasoning": {"effort": "high"}}), plain, nothing, Ok(("b", "rule"))),
            (json!({}), careful, nothing, Ok(("b", "rule"))),
            (json!({}), careful, &["b"][..], Ok(("f", "quota"))),
            (json!({}), careful, &["b", "f"], Ok(("b", "rule"))),
            (json!({"metadata": {"difficulty": "hardest"}}), trusted, nothing, Ok(("e", "rule"))),
            (json!({"metadata": {"difficulty": "hardest"}}), plain, nothing, Ok(("b", "scope"))),
            (json!({"model": "fast"}), careful, nothing, Ok(("f", "caller"))),
            (json!({"model": "best"}), plain, &["b"], Ok(("b", "caller"))),
            (json!({"model": "expert"}), trusted, nothing, Ok(("e", "caller"))),
            (json!({"model": "expert"}), plain, nothing, Err(NotChosen::Scope)),
            (json!({"model": "gpt-of-tomorrow"}), plain, &["f"], Ok(("gpt-of-tomorrow", "caller"))),
        ] {
            let found = choose(&config, &body(what.clone()), caller, |name| short.contains(&name));
            let found = found.map(|chosen| (chosen.name, chosen.by));
            assert_eq!(found, want.map(|(name, by)| (name.to_owned(), by)), "{what}");
        }
        let none = TextConfig { expert: None, ..config };
        let found = choose(&none, &body(json!({"model": "expert"})), trusted, |_| false);
        assert_eq!(found, Err(NotChosen::Unknown));
    }
}

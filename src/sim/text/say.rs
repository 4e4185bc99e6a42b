//! What is answered to a text: some sentences, JSON, a function call, a refusal; and where `max_output_tokens` cuts it. Pure.
use serde_json::{Value, json};

use super::{
    super::{
        faults::How,
        reply::{Said, asked_calls},
        tokens,
    },
    ask::{Asked, Form},
    fill, hash,
};

/// What a model says that refuses.
const REFUSAL: &str = "I'm sorry, but I can't help with that request.";
/// Characters of a token, as [`tokens`] has it.
const TOKEN: usize = 4;

/// One thing that is put out.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Refusal(String),
    Call { name: String, arguments: String },
}

impl Piece {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Refusal(text) => text,
            Self::Call { arguments, .. } => arguments,
        }
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    /// More tokens were needed than were allowed.
    Incomplete,
    Failed,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spoken {
    pub(super) pieces: Vec<Piece>,
    pub(super) end: End,
    /// What was cut off: the next answer goes on with it.
    pub(super) rest: Option<String>,
    pub(super) reasoning_tokens: u64,
    pub(super) output_tokens: u64,
}

/// Makes up the answer. `rest`: what the answer before it could not say any more.
pub(super) fn say(asked: &Asked<'_>, rest: Option<&str>, how: Option<How>, message: Option<&str>) -> Spoken {
    let reasoning_tokens = match asked.effort {
        None | Some("none") => 0,
        Some("minimal") => 16,
        Some("low") => 64,
        Some("medium") => 128,
        Some(_) => 256,
    };
    let pieces = match (how, rest) {
        (Some(How::Failed), _) => Vec::new(),
        (Some(How::Refusal), _) => vec![Piece::Refusal(message.unwrap_or(REFUSAL).to_owned())],
        (_, Some(rest)) => vec![Piece::Text(rest.to_owned())],
        _ => calls(asked).unwrap_or_else(|| vec![Piece::Text(text(asked, how))]),
    };
    let weight = |pieces: &[Piece]| pieces.iter().map(|piece| tokens::of_text(piece.text())).sum::<u64>();
    let most = match (asked.max_output_tokens, how) {
        (most, Some(How::Incomplete)) => Some(most.unwrap_or(u64::MAX).min(reasoning_tokens + weight(&pieces) / 2)),
        (most, _) => most,
    };
    let mut said = Spoken { pieces, end: End::Completed, rest: None, reasoning_tokens, output_tokens: 0 };
    if how == Some(How::Failed) {
        said.end = End::Failed;
        return said;
    }
    said.output_tokens = reasoning_tokens + weight(&said.pieces);
    if let Some(most) = most.filter(|most| *most < said.output_tokens) {
        cut(&mut said, most);
    }
    said
}

/// Leaves out what is over the limit.
fn cut(said: &mut Spoken, most: u64) {
    said.end = End::Incomplete;
    said.reasoning_tokens = said.reasoning_tokens.min(most);
    let left = most - said.reasoning_tokens;
    let mut pieces = Vec::new();
    if let Some(Piece::Text(text)) = said.pieces.first() {
        let chars = usize::try_from(left).unwrap_or(usize::MAX).saturating_mul(TOKEN);
        let at = text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
        let (kept, rest) = text.split_at(at);
        said.rest = Some(rest.to_owned()).filter(|rest| !rest.is_empty());
        if !kept.is_empty() {
            pieces.push(Piece::Text(kept.to_owned()));
        }
    }
    said.output_tokens = said.reasoning_tokens + pieces.iter().map(|piece| tokens::of_text(piece.text())).sum::<u64>();
    said.pieces = pieces;
}

/// The function calls that are asked for, in the words of a session: `call NAME {"argument": 1}`, or by `tool_choice`.
fn calls(asked: &Asked<'_>) -> Option<Vec<Piece>> {
    let functions = asked.functions();
    let first = functions.first().copied().filter(|_| asked.input.returned.is_empty())?;
    let called: Vec<Piece> = asked_calls(&asked.input.asked, &functions)
        .into_iter()
        .filter_map(|said| match said {
            Said::Call { name, arguments } => Some(Piece::Call { name, arguments }),
            _ => None,
        })
        .collect();
    if !called.is_empty() {
        return Some(called);
    }
    let forced = asked.tool_choice.get("name").and_then(Value::as_str).filter(|name| functions.contains(name));
    let name = forced.or((asked.tool_choice == "required").then_some(first))?;
    let arguments = match asked.parameters(name) {
        Some(parameters) => fill::fill(parameters, &asked.input.asked).to_string(),
        None => "{}".to_owned(),
    };
    Some(vec![Piece::Call { name: name.to_owned(), arguments }])
}

fn text(asked: &Asked<'_>, how: Option<How>) -> String {
    let input = asked.input.asked.as_str();
    let good = match &asked.form {
        Form::Text => return cut_short(sentences(asked), how == Some(How::Malformed)),
        Form::Json => json!({"answer": sentences(asked), "characters": input.chars().count()}),
        Form::Schema(schema) => fill::fill(schema, input),
    };
    match how {
        Some(How::Misfit) => fill::misfit(good).to_string(),
        Some(How::Malformed) => cut_short(good.to_string(), true),
        _ => good.to_string(),
    }
}

/// Text that ends in its middle, if it is to.
fn cut_short(text: String, really: bool) -> String {
    if !really {
        return text;
    }
    let half = text.chars().count() / 2;
    text.chars().take(half.max(1)).collect()
}

/// Three to six sentences with words of what was asked.
fn sentences(asked: &Asked<'_>) -> String {
    if !asked.input.returned.is_empty() {
        return format!("The tool said: {}", asked.input.returned.join(" "));
    }
    let text = asked.input.asked.as_str();
    let words: Vec<&str> = text.split_whitespace().collect();
    let seed = hash((text, asked.instructions)) >> 8;
    let about = |n: u64| {
        let from = (seed / (n + 3)) % (words.len().max(1) as u64);
        let some = words.iter().skip(usize::try_from(from).unwrap_or(0)).take(4);
        let some = some.copied().collect::<Vec<_>>().join(" ");
        if some.is_empty() { "nothing".to_owned() } else { some }
    };
    let mut said = vec![format!("You have written {} words.", words.len()), format!("It is about \"{}\".", about(0))];
    for n in 0..1 + seed % 4 {
        said.push(match (seed + n) % 3 {
            0 => format!("Of \"{}\" more could be said.", about(n + 1)),
            1 => format!("There is also \"{}\" to be thought of.", about(n + 1)),
            _ => format!("I have noted \"{}\".", about(n + 1)),
        });
    }
    said.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{super::super::config::SimConfig, *};

    fn said(body: Value, rest: Option<&str>, how: Option<How>) -> Spoken {
        let mut body = body;
        body["model"] = json!("gpt-5.6-luna");
        say(&Asked::read(&SimConfig::default(), &body).unwrap(), rest, how, None)
    }

    fn only(said: &Spoken) -> &str {
        let [piece] = said.pieces.as_slice() else { panic!("{said:?}") };
        piece.text()
    }

    const SCHEMA: &str = r#"{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a", "b"], "additionalProperties": false}"#;

    fn shaped() -> Value {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        json!({"input": "one two three", "text": {"format": {"type": "json_schema", "name": "x", "strict": true, "schema": schema}}})
    }

    #[test]
    fn the_same_question_gets_the_same_answer_and_another_one_another() {
        let one = said(json!({"input": "where is my parcel?"}), None, None);
        assert_eq!(one, said(json!({"input": [{"role": "user", "content": "where is my parcel?"}]}), None, None));
        assert!(only(&one).contains("You have written 4 words."), "{one:?}");
        assert_eq!(one.output_tokens, tokens::of_text(only(&one)));
        assert_ne!(one, said(json!({"input": "where is my refund?"}), None, None));
    }

    #[test]
    fn an_answer_that_is_cut_is_gone_on_with() {
        let whole = said(json!({"input": "tell me all about it"}), None, None);
        let first = said(json!({"input": "tell me all about it", "max_output_tokens": 16}), None, None);
        assert_eq!((first.end, first.output_tokens), (End::Incomplete, 16));
        let rest = first.rest.clone().unwrap();
        let second = said(json!({"input": "go on"}), Some(&rest), None);
        assert_eq!(second.end, End::Completed);
        assert_eq!([only(&first), only(&second)].concat(), only(&whole));
        let half = said(json!({"input": "tell me all about it"}), None, Some(How::Incomplete));
        assert_eq!((half.end, half.rest.is_some()), (End::Incomplete, true));
        let thinking = json!({"input": "tell me", "max_output_tokens": 16, "reasoning": {"effort": "high"}});
        let thinking = said(thinking, None, None);
        assert_eq!((thinking.pieces.len(), thinking.output_tokens, thinking.reasoning_tokens), (0, 16, 16));
    }

    #[test]
    fn json_fits_unless_it_is_not_to() {
        let good: Value = serde_json::from_str(only(&said(shaped(), None, None))).unwrap();
        assert!(good["a"].is_string() && good["b"].is_i64(), "{good}");
        assert!(serde_json::from_str::<Value>(only(&said(shaped(), None, Some(How::Malformed)))).is_err());
        let misfit: Value = serde_json::from_str(only(&said(shaped(), None, Some(How::Misfit)))).unwrap();
        assert!(misfit.get("a").is_none(), "{misfit}");
        let refusal = said(shaped(), None, Some(How::Refusal));
        assert_eq!(refusal.pieces, [Piece::Refusal(REFUSAL.into())]);
        assert_eq!(said(shaped(), None, Some(How::Failed)).end, End::Failed);
    }

    #[test]
    fn functions_are_called_when_they_are_asked_for() {
        let tools = json!([{"type": "function", "name": "look_up", "parameters": serde_json::from_str::<Value>(SCHEMA).unwrap()}]);
        let asked = said(json!({"input": "call look_up {\"a\": 1}", "tools": tools}), None, None);
        assert_eq!(asked.pieces, [Piece::Call { name: "look_up".into(), arguments: "{\"a\": 1}".into() }]);
        let forced = said(json!({"input": "hello", "tools": tools, "tool_choice": "required"}), None, None);
        assert!(serde_json::from_str::<Value>(only(&forced)).unwrap()["b"].is_i64(), "{forced:?}");
        let plain = said(json!({"input": "call look_up", "tools": tools, "tool_choice": "none"}), None, None);
        assert!(matches!(plain.pieces[..], [Piece::Text(_)]));
        let output = json!([{"role": "user", "content": "call look_up"}, {"type": "function_call_output", "call_id": "c", "output": "21"}]);
        assert_eq!(only(&said(json!({"input": output, "tools": tools}), None, None)), "The tool said: 21");
    }
}

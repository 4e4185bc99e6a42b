//! One row an event: its name in both shapes, and what else differs.

/// What differs beside the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Nothing, not even the name.
    Same,
    /// The name only.
    Renamed,
    /// The session in it.
    Session,
    /// The item in it.
    Item,
    /// The item in it, and how often it is said.
    Added,
    /// The reply in it.
    Reply,
    /// The function's name, which only GA says.
    Named,
    /// The count of tokens, which only GA needs.
    Counted,
    /// There is no such event in the beta.
    Gone,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) ga: &'static str,
    /// Empty: none.
    pub(super) beta: &'static str,
    pub(super) how: How,
}

const fn row(ga: &'static str, beta: &'static str, how: How) -> Row {
    Row { ga, beta, how }
}

const fn same(name: &'static str) -> Row {
    row(name, name, How::Same)
}

const fn gone(ga: &'static str) -> Row {
    row(ga, "", How::Gone)
}

/// Events of the client.
pub(super) const CLIENT: [Row; 11] = [
    row("session.update", "session.update", How::Session),
    same("input_audio_buffer.append"),
    same("input_audio_buffer.commit"),
    same("input_audio_buffer.clear"),
    row("conversation.item.create", "conversation.item.create", How::Item),
    same("conversation.item.retrieve"),
    same("conversation.item.truncate"),
    same("conversation.item.delete"),
    row("response.create", "response.create", How::Reply),
    same("response.cancel"),
    same("output_audio_buffer.clear"),
];

/// Events of the service.
pub(super) const SERVER: [Row; 46] = [
    same("error"),
    row("session.created", "session.created", How::Session),
    row("session.updated", "session.updated", How::Session),
    same("conversation.created"),
    // The order of these two: the first that has a beta name is what an event of that name is taken for.
    row("conversation.item.added", "conversation.item.created", How::Added),
    row("conversation.item.created", "conversation.item.created", How::Added),
    gone("conversation.item.done"),
    row("conversation.item.retrieved", "conversation.item.retrieved", How::Item),
    same("conversation.item.truncated"),
    same("conversation.item.deleted"),
    same("conversation.item.input_audio_transcription.delta"),
    row(
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.input_audio_transcription.completed",
        How::Counted,
    ),
    same("conversation.item.input_audio_transcription.failed"),
    gone("conversation.item.input_audio_transcription.segment"),
    same("input_audio_buffer.committed"),
    same("input_audio_buffer.cleared"),
    same("input_audio_buffer.speech_started"),
    same("input_audio_buffer.speech_stopped"),
    gone("input_audio_buffer.timeout_triggered"),
    gone("input_audio_buffer.dtmf_event_received"),
    same("output_audio_buffer.started"),
    same("output_audio_buffer.stopped"),
    same("output_audio_buffer.cleared"),
    row("response.created", "response.created", How::Reply),
    row("response.done", "response.done", How::Reply),
    row("response.output_item.added", "response.output_item.added", How::Item),
    row("response.output_item.done", "response.output_item.done", How::Item),
    same("response.content_part.added"),
    same("response.content_part.done"),
    row("response.output_audio.delta", "response.audio.delta", How::Renamed),
    row("response.output_audio.done", "response.audio.done", How::Renamed),
    row("response.output_audio_transcript.delta", "response.audio_transcript.delta", How::Renamed),
    row("response.output_audio_transcript.done", "response.audio_transcript.done", How::Renamed),
    row("response.output_text.delta", "response.text.delta", How::Renamed),
    row("response.output_text.done", "response.text.done", How::Renamed),
    same("response.function_call_arguments.delta"),
    row("response.function_call_arguments.done", "response.function_call_arguments.done", How::Named),
    same("rate_limits.updated"),
    gone("mcp_list_tools.in_progress"),
    gone("mcp_list_tools.completed"),
    gone("mcp_list_tools.failed"),
    gone("response.mcp_call.in_progress"),
    gone("response.mcp_call.completed"),
    gone("response.mcp_call.failed"),
    gone("response.mcp_call_arguments.delta"),
    gone("response.mcp_call_arguments.done"),
];

/// The beta has names of its own for sessions that only write down.
pub(super) fn transcription(name: &str) -> &'static str {
    match name {
        "session.update" => "transcription_session.update",
        "session.created" => "transcription_session.created",
        "session.updated" => "transcription_session.updated",
        _ => "",
    }
}

pub(super) fn is_transcription(kind: Option<&serde_json::Value>) -> bool {
    kind.and_then(serde_json::Value::as_str).is_some_and(|kind| kind.starts_with("transcription_session."))
}

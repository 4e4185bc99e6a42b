//! The metrics page (`GET /metrics`, Prometheus text).
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds; fine where people hear a difference.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0];

/// Seconds, for what lives for minutes.
const AGES: [f64; 10] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 7_200.0];

/// Collects from now on; the handle renders the page. Only one can be in a process.
///
/// # Errors
/// When one is there already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("voxrelay_secret_age_seconds".to_owned()), &AGES)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    describe_counter!("voxrelay_calls_total", "Calls begun, by door");
    describe_gauge!("voxrelay_calls_active", "Calls open now");
    describe_counter!("voxrelay_calls_ended_total", "Calls ended, by close code");
    describe_counter!("voxrelay_replies_total", "Replies ended, by status");
    describe_counter!("voxrelay_errors_total", "Errors told to clients, by code");
    describe_counter!(
        "voxrelay_client_bytes_total",
        Unit::Bytes,
        "Payload bytes from and to clients, counted at a call's end"
    );
    describe_counter!("voxrelay_unknown_events_total", "Events of the service that we do not know");
    describe_counter!("voxrelay_swallowed_errors_total", "Errors of the service about what had already happened");
    describe_counter!("voxrelay_service_errors_total", "Errors of the service that were told to a client");
    describe_histogram!(
        "voxrelay_first_audio_seconds",
        Unit::Seconds,
        "End of the caller's turn to the reply's first audio"
    );
    describe_histogram!(
        "voxrelay_relay_added_seconds",
        Unit::Seconds,
        "First delta at the relay to the client's socket"
    );
    describe_counter!("voxrelay_turns_delayed_total", "Answers that had to wait for the account's limits, by limit");
    describe_counter!("voxrelay_turns_refused_total", "Answers refused for the account's limits, by limit");
    describe_histogram!("voxrelay_turn_wait_seconds", Unit::Seconds, "Wait of answers until they could be asked for");
    describe_gauge!("voxrelay_quota_left", "What may be taken now of an account's limit, by account, model and limit");
    describe_gauge!("voxrelay_quota_reserved", "What running replies and sessions have of it");
    describe_gauge!("voxrelay_quota_waiting", "Answers that wait for it, by account, model and class");
    describe_gauge!(
        "voxrelay_quota_fairness",
        "Jain's index of the tokens granted to each tenant, by weight: 1 is even"
    );
    describe_counter!("voxrelay_tokens_total", "Tokens that the service counted, by direction and kind");
    describe_counter!("voxrelay_cached_tokens_total", "Of the tokens in, those that the service had in its cache");
    describe_counter!(
        "voxrelay_cost_microusd_total",
        "Money spent, millionths of a US dollar, by model, as the usage ledger has it"
    );
    describe_counter!("voxrelay_cost_unknown_total", "Replies and transcripts whose cost is not known, by model");
    describe_counter!("voxrelay_ledger_rows_total", "Rows written to the usage ledger");
    describe_counter!("voxrelay_ledger_failures_total", "Tries to write them that failed; they are made again");
    describe_counter!("voxrelay_ledger_lost_total", "Rows lost, for there was no room left to keep them");
    describe_gauge!("voxrelay_ledger_waiting", "Rows that are not written yet");
    describe_counter!("voxrelay_secrets_made_total", "Client secrets made");
    describe_counter!("voxrelay_secrets_failed_total", "Client secrets that could not be made, by error code");
    describe_counter!("voxrelay_secrets_used_total", "Uses of client secrets: ready (cached), or waited for");
    describe_counter!("voxrelay_upstream_limits_total", "Limits of the service that were hit, by limit");
    describe_histogram!("voxrelay_secret_age_seconds", Unit::Seconds, "Age of client secrets at their use");
    describe_histogram!("voxrelay_secret_wait_seconds", Unit::Seconds, "Wait for a client secret");
    describe_histogram!("voxrelay_session_up_seconds", Unit::Seconds, "Dialling to session.created");
    describe_counter!("voxrelay_breaker_opened_total", "Runs of failures after which a service was left alone");
    describe_gauge!("voxrelay_services_open", "Services that are left alone now, but for a try a second");
    describe_counter!("voxrelay_route_opened_total", "Runs of failures after which a tier's route was left alone");
    describe_gauge!("voxrelay_routes_open", "Tiers' routes that are left alone now, but for a try a second");
    describe_counter!("voxrelay_canaries_judged_total", "Candidates that were promoted or rolled back, by standing");
    describe_counter!("voxrelay_texts_total", "Requests for text that are over, by door and status");
    describe_histogram!(
        "voxrelay_text_first_seconds",
        Unit::Seconds,
        "Sending a request for text to the first byte of its answer"
    );
    describe_histogram!("voxrelay_text_seconds", Unit::Seconds, "And to its end");
    describe_counter!("voxrelay_tools_total", "Tools that the relay ran itself, by name and outcome");
    describe_histogram!("voxrelay_tool_seconds", Unit::Seconds, "How long they took, all tries together");
    // What is still nothing is shown as such, so that a new relay's page is not an empty one.
    for door in ["thin", "openai"] {
        counter!("voxrelay_calls_total", "door" => door).absolute(0);
    }
    gauge!("voxrelay_calls_active").set(0.0);
    Ok(handle)
}

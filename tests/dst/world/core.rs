//! The relay's side of a call: the real core is told things, and what it wants done is done. As `call::driver` does it.
use voxrelay::{
    call::{
        core::{Input, Output, TurnAct},
        end::End,
    },
    client::{thin, wire::ServerMsg},
    net::outbox::Kind as Frame,
    upstream::{Command, History as Told, ga},
};

use super::{Ev, MS, World};
use crate::{
    audio::{read, runs},
    check::Fact,
    faults::On,
};

impl World {
    pub(super) fn input(&mut self, call: usize, input: Input<'_>) {
        if self.calls[call].over {
            return;
        }
        let now = self.now;
        let it = &mut self.calls[call];
        it.core.client_has_all(it.outbox.is_empty());
        it.core.client_lacks(now, 20 * MS * u32::try_from(it.outbox.binaries()).unwrap());
        it.core.handle(now, input);
        self.act(call);
    }

    pub(super) fn act(&mut self, call: usize) {
        loop {
            let now = self.now;
            let it = &mut self.calls[call];
            let Some(output) = it.core.poll(now, it.outbox.bytes() < 4 << 20) else { break };
            if let Output::End(end) = output {
                return self.ended(call, &end);
            }
            self.output(call, output);
        }
        self.pump(call);
        let it = &mut self.calls[call];
        if it.first_audio && it.outbox.is_empty() {
            it.first_audio = false;
            let now = self.now;
            self.calls[call].core.handle(now, Input::FirstAudioLeft);
            return self.act(call);
        }
        let state = (it.core.is_connected(), it.running.is_some() || it.dialling);
        if state != it.state {
            it.state = state;
            self.note(call, Fact::Legs { client: state.0, service: state.1 });
        }
    }

    pub(super) fn output(&mut self, call: usize, output: Output) {
        let it = &mut self.calls[call];
        match output {
            Output::Send(message @ ServerMsg::Ready { .. }) => it.outbox.uncounted(thin::write(&message)),
            Output::Send(message) => it.outbox.text(thin::write(&message)),
            Output::SendNow(message) => it.outbox.urgent(thin::write(&message)),
            Output::Audio { frame, first } => {
                it.first_audio |= first;
                it.outbox.binary(frame);
                self.moment(call, On::ReplyAudio);
            }
            Output::DropAudio => it.outbox.drop_binary(),
            Output::Service { number, command } => self.command(call, number, command),
            Output::Received(got) => it.outbox.received(got),
            Output::HangUp { why, word } => {
                if let Some(word) = word {
                    let (at, text) = (self.base + self.now, thin::write(&word));
                    it.outbox.said_last(at, &text);
                    if let Some(link) = it.server_link {
                        self.numbered(call, &text);
                        self.down(call, link, Frame::Text, text, true);
                    }
                }
                self.note(call, Fact::Told(format!("hang up: {why}")));
                if let Some(link) = self.calls[call].server_link.take() {
                    self.close_link(call, link);
                }
            }
            Output::RunTool { call_id, .. } => {
                self.note(call, Fact::Called { call_id: call_id.clone() });
                let after = self.calls[call].jitter(10, 9_500); // some too late
                self.later(call, after, Ev::Ran(call_id));
            }
            // A result that comes all the same is nobody's.
            Output::DropTool { .. } => {}
            Output::Dial => self.dial(call),
            Output::DialNext => {
                it.next = None;
                it.dialling_next = true;
                self.dial_soon(call);
            }
            Output::Switch => {
                if let Some(left) = it.running {
                    it.legs[left].whole = false; // it is closed, and says nothing more
                }
                it.running = it.next.take();
                let session = it.running.unwrap_or(usize::MAX);
                self.note(call, Fact::Runs { session });
            }
            Output::Book(booked) => {
                let tokens = booked.usage.total_tokens;
                let fact = Fact::Booked { id: booked.id, estimated: booked.estimated, tokens };
                if booked.kind == voxrelay::ledger::Kind::Reply {
                    self.note(call, fact);
                }
            }
            Output::LeaveService => (it.running, it.next) = (None, None),
            Output::PingClient => it.outbox.ping(),
            Output::PingService => {
                if let Some(leg) = it.running.filter(|leg| it.legs[*leg].whole && !it.legs[*leg].deaf) {
                    self.later(call, 60 * MS, Ev::ServicePong(leg));
                }
            }
            Output::AudioTail
            | Output::Line { .. }
            | Output::DropInput
            | Output::Hold(_)
            | Output::HandOver
            | Output::Fact(_) => {}
            Output::Forward(_) | Output::Greet(_) | Output::Relay { .. } | Output::End(_) => {}
            Output::Turn(act) => self.turn(call, act),
            Output::Told(_) => {}
            Output::Renew(_) => self.later(call, 50 * MS, Ev::Renewed),
        }
    }

    /// The account: it grants some wishes at once and some later, and has little now and then.
    fn turn(&mut self, call: usize, act: TurnAct) {
        let held = &mut self.calls[call].held;
        match act {
            TurnAct::Ask { number, size, .. } => {
                assert!(number > held.number, "a wish has a number of its own");
                held.number = number;
                let wait = u32::try_from(size.tokens() % 7).unwrap() * 60 * MS;
                self.later(call, wait, Ev::Granted(number));
            }
            TurnAct::Forget | TurnAct::Look { .. } => {}
            TurnAct::Again => assert!(std::mem::take(&mut held.asked), "it was asked for"),
            TurnAct::Asked { .. } => {
                assert!(!std::mem::replace(&mut held.asked, true), "one at a time");
            }
            TurnAct::Never { .. } => held.asked = false,
            TurnAct::Began { response, asked, .. } => {
                assert!(!asked || std::mem::take(&mut held.asked), "it was asked for");
                held.running.push(response);
            }
            TurnAct::Over { response, used, .. } => {
                held.running.retain(|running| *running != response);
                let scarce = used.unwrap_or_default().total_tokens % 3 == 0;
                self.later(call, 10 * MS, Ev::Scarce(scarce));
            }
            TurnAct::Lost => (held.asked, held.running) = (false, Vec::new()),
        }
    }

    pub(super) fn ended(&mut self, call: usize, end: &End) {
        let it = &mut self.calls[call];
        it.over = true;
        let owed = it.core.uncounted();
        let leftover = it.core.deadline(true).is_some();
        for booked in owed {
            let tokens = booked.usage.total_tokens;
            self.note(call, Fact::Booked { id: booked.id, estimated: true, tokens });
        }
        self.note(call, Fact::End { why: end.to_string() });
        if leftover {
            self.note(call, Fact::Leftover);
        }
    }

    pub(super) fn command(&mut self, call: usize, number: u64, command: Command) {
        let name = match &command {
            Command::Append(_) => "append",
            Command::Commit => "commit",
            Command::CreateReply { .. } => "create reply",
            Command::CancelReply { .. } => "cancel",
            Command::Configure { listens: true, .. } => "listen",
            Command::Configure { listens: false, .. } => "do not listen",
            Command::Answers { answers: true } => "answer",
            Command::Answers { answers: false } => "do not answer",
            Command::Retell { .. } => "retell",
            Command::UserText { .. } => "text",
            Command::ToolOutput { .. } => "tool output",
            Command::Truncate { .. } => "truncate",
            Command::DeleteItem { .. } => "delete",
            Command::ClearInput => "clear",
        };
        let it = &mut self.calls[call];
        let Some(leg) = it.running.filter(|leg| it.legs[*leg].whole) else { return };
        let text = ga::encode(&command, &it.setup, number);
        let delay = it.jitter(20, 60);
        let leg_at = &mut it.legs[leg];
        let near = it.client.position;
        let at = (self.now + delay).max(leg_at.ask_last);
        leg_at.ask_last = at;
        match &command {
            Command::Append(audio) => {
                let units = runs(read(audio, near).flatten());
                self.note(call, Fact::Append { session: leg, units });
            }
            Command::Retell { item: Told::UserAudio { audio }, .. } => {
                let units = runs(read(audio, near).flatten());
                self.note(call, Fact::Turn { session: leg, units });
            }
            Command::ToolOutput { call_id, .. } => self.note(call, Fact::Answered { call_id: call_id.clone() }),
            _ => self.note(call, Fact::Asked(name)),
        }
        let on = match command {
            Command::Commit => Some(On::AskedCommit),
            Command::CreateReply { .. } => Some(On::AskedReply),
            _ => None,
        };
        self.at(call, at, Ev::Ask(leg, Box::new((text, command))));
        if let Some(on) = on {
            self.moment(call, on);
        }
    }
}

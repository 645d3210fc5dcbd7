use crate::augmentation::pick;
use crate::keyed_hash::keyed_hash;
use crate::pipeline::Prepared;
use crate::{JoinTurns, Row, RowShape};
use qlora_text::Message;

/// Collects single turns and gives out conversations: see [`JoinTurns`].
pub(crate) struct TurnJoiner {
    settings: JoinTurns,
    seed: u64,
    waiting: Vec<Prepared>,
    windows: u64,
}

/// What rows must have in common to be joined. A row that is held out must not become part of a conversation that is
/// trained on; one of another shape than its file's may have to go.
#[derive(PartialEq)]
struct Kind {
    for_eval: bool,
    shape: Option<RowShape>,
    system: Option<String>,
}

impl TurnJoiner {
    pub(crate) fn new(settings: JoinTurns, seed: u64) -> Self {
        Self { settings, seed, waiting: Vec::new(), windows: 0 }
    }

    /// Takes rows in and gives out those that are ready.
    pub(crate) fn push(&mut self, rows: Vec<Prepared>) -> Vec<Prepared> {
        let mut ready = Vec::new();
        for row in rows {
            if row.row.as_ref().is_ok_and(is_single_turn) {
                self.waiting.push(row);
                if self.waiting.len() >= self.settings.window {
                    ready.extend(self.finish());
                }
            } else {
                ready.push(row);
            }
        }
        ready
    }

    /// Joins what waits.
    pub(crate) fn finish(&mut self) -> Vec<Prepared> {
        let mut groups: Vec<(Kind, Vec<Prepared>)> = Vec::new();
        for row in self.waiting.drain(..) {
            let system = row.row.as_ref().ok().and_then(system_of).map(str::to_owned);
            let kind = Kind { for_eval: row.for_eval, shape: row.shape, system };
            match groups.iter_mut().find(|(other, _)| *other == kind) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((kind, vec![row])),
            }
        }
        let mut draws = 0_u64;
        let mut draw = |count: usize| {
            draws += 1;
            let key = [self.windows.to_le_bytes(), draws.to_le_bytes()].concat();
            pick(keyed_hash(self.seed, "join", &key), count)
        };
        let mut joined: Vec<Prepared> = Vec::new();
        for (_, mut rows) in groups {
            for last in (1..rows.len()).rev() {
                rows.swap(last, draw(last + 1));
            }
            let mut left = 0;
            for row in rows {
                match joined.last_mut() {
                    Some(conversation) if left > 0 => append(conversation, row),
                    _ => {
                        joined.push(row);
                        left = 1 + draw(self.settings.max_turns);
                    }
                }
                left -= 1;
            }
        }
        self.windows += 1;
        joined
    }
}

fn system_of(row: &Row) -> Option<&str> {
    match row {
        Row::Conversation { messages, .. } => {
            messages.first().filter(|message| message.role() == "system")?.text()
        }
        _ => None,
    }
}

fn is_single_turn(row: &Row) -> bool {
    let Row::Conversation { messages, tools: None, variables: None, .. } = row else { return false };
    let roles: Vec<&str> = messages.iter().map(Message::role).collect();
    matches!(roles[..], ["user", "assistant"])
        || matches!(roles[..], ["system", "user", "assistant"]) && system_of(row).is_some()
}

fn append(conversation: &mut Prepared, next: Prepared) {
    if let (
        Ok(Row::Conversation { messages, trained_from, .. }),
        Ok(Row::Conversation { messages: more, .. }),
    ) = (&mut conversation.row, next.row)
    {
        // Every answer is trained.
        *trained_from = 0;
        messages.extend(more.into_iter().filter(|message| message.role() != "system"));
    }
}

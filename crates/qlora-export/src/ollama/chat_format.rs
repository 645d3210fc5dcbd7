//! Formats of conversations: what stands before and after a message of each role.

/// A turn: the text before a message and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) before: String,
    pub(super) after: String,
}

impl Turn {
    pub(super) fn new(before: impl Into<String>, after: impl Into<String>) -> Self {
        Self { before: before.into(), after: after.into() }
    }
}

/// Where a system message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// It has a turn of its own.
    Turn(Turn),
    /// It stands within the turn of the first user's message, in front of that.
    BeforeFirstUser(Turn),
}

/// A format of conversations without tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChatFormat {
    /// What every conversation begins with.
    pub(super) start: String,
    /// What follows in a conversation without a system message.
    pub(super) no_system: String,
    pub(super) system: System,
    pub(super) user: Turn,
    pub(super) assistant: Turn,
    /// What the assistant's answer is the continuation of. Often, but not always, what its turn begins with.
    pub(super) answer: String,
}

impl ChatFormat {
    /// The text of a conversation of `(role, content)` that ends with a user's message, up to where the answer begins.
    pub(super) fn render(&self, messages: &[(&str, &str)]) -> String {
        let mut out = self.start.clone();
        let mut pending = None;
        if messages.first().is_none_or(|(role, _)| *role != "system") {
            out.push_str(&self.no_system);
        }
        for (role, text) in messages {
            let (Turn { before, after }, first) = match (*role, &self.system) {
                ("system", System::Turn(turn)) => (turn, None),
                ("system", System::BeforeFirstUser(Turn { before, after })) => {
                    pending = Some([before, *text, after].concat());
                    continue;
                }
                ("user", _) => (&self.user, pending.take()),
                _ => (&self.assistant, None),
            };
            out.extend([before, first.as_deref().unwrap_or(""), text, after]);
        }
        out.push_str(&self.answer);
        out
    }

    /// Takes out of the format what it says as the system when a conversation does not, so that it can be a default
    /// that is shown and replaced.
    pub(super) fn take_default_system(&mut self) -> Option<String> {
        let System::Turn(Turn { before, after }) = &self.system else { return None };
        let system = self.no_system.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
        // Quotation marks would end the text in a Modelfile.
        let system = Some(system).filter(|text| !text.is_empty() && !text.contains("\"\"\""))?.to_owned();
        self.no_system.clear();
        Some(system)
    }

    /// The control text, such as `<|im_end|>`, that an answer ends with, be it a token or not.
    pub(super) fn answer_end(&self) -> Option<&str> {
        let end = self.assistant.after.trim_start();
        let length = end.find('>').filter(|_| end.starts_with('<'))?;
        Some(&end[..=length])
    }
}

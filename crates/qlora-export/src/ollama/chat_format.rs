//! Formats of conversations: what stands before and after a message of each role.

/// A turn: the text before a message and after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) before: &'static str,
    pub(super) after: &'static str,
}

/// Where a system message goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum System {
    /// It has a turn of its own.
    Turn(Turn),
    /// It stands in front of the first user's message, followed by this.
    BeforeFirstUser(&'static str),
}

/// A format of conversations without tools. The answer is continued from `assistant.before`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChatFormat {
    pub(super) name: &'static str,
    pub(super) system: System,
    pub(super) user: Turn,
    pub(super) assistant: Turn,
}

impl ChatFormat {
    pub(super) const ALL: [Self; 10] = [
        Self {
            name: "chatml",
            system: System::Turn(Turn { before: "<|im_start|>system\n", after: "<|im_end|>\n" }),
            user: Turn { before: "<|im_start|>user\n", after: "<|im_end|>\n" },
            assistant: Turn { before: "<|im_start|>assistant\n", after: "<|im_end|>\n" },
        },
        Self {
            name: "llama3",
            system: System::Turn(Turn {
                before: "<|start_header_id|>system<|end_header_id|>\n\n",
                after: "<|eot_id|>",
            }),
            user: Turn { before: "<|start_header_id|>user<|end_header_id|>\n\n", after: "<|eot_id|>" },
            assistant: Turn {
                before: "<|start_header_id|>assistant<|end_header_id|>\n\n",
                after: "<|eot_id|>",
            },
        },
        Self {
            name: "gemma",
            system: System::BeforeFirstUser("\n\n"),
            user: Turn { before: "<start_of_turn>user\n", after: "<end_of_turn>\n" },
            assistant: Turn { before: "<start_of_turn>model\n", after: "<end_of_turn>\n" },
        },
        Self {
            name: "phi3",
            system: System::Turn(Turn { before: "<|system|>\n", after: "<|end|>\n" }),
            user: Turn { before: "<|user|>\n", after: "<|end|>\n" },
            assistant: Turn { before: "<|assistant|>\n", after: "<|end|>\n" },
        },
        Self {
            name: "phi4",
            system: System::Turn(Turn { before: "<|im_start|>system<|im_sep|>", after: "<|im_end|>" }),
            user: Turn { before: "<|im_start|>user<|im_sep|>", after: "<|im_end|>" },
            assistant: Turn { before: "<|im_start|>assistant<|im_sep|>", after: "<|im_end|>" },
        },
        Self {
            name: "zephyr",
            system: System::Turn(Turn { before: "<|system|>\n", after: "</s>\n" }),
            user: Turn { before: "<|user|>\n", after: "</s>\n" },
            assistant: Turn { before: "<|assistant|>\n", after: "</s>\n" },
        },
        Self {
            name: "mistral",
            system: System::BeforeFirstUser("\n\n"),
            user: Turn { before: "[INST] ", after: " [/INST]" },
            assistant: Turn { before: "", after: "</s>" },
        },
        Self {
            name: "mistral-v7",
            system: System::Turn(Turn { before: "[SYSTEM_PROMPT]", after: "[/SYSTEM_PROMPT]" }),
            user: Turn { before: "[INST]", after: "[/INST]" },
            assistant: Turn { before: "", after: "</s>" },
        },
        Self {
            name: "granite",
            system: System::Turn(Turn {
                before: "<|start_of_role|>system<|end_of_role|>",
                after: "<|end_of_text|>\n",
            }),
            user: Turn { before: "<|start_of_role|>user<|end_of_role|>", after: "<|end_of_text|>\n" },
            assistant: Turn {
                before: "<|start_of_role|>assistant<|end_of_role|>",
                after: "<|end_of_text|>\n",
            },
        },
        Self {
            name: "command-r",
            system: System::Turn(Turn {
                before: "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
                after: "<|END_OF_TURN_TOKEN|>",
            }),
            user: Turn { before: "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", after: "<|END_OF_TURN_TOKEN|>" },
            assistant: Turn {
                before: "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
                after: "<|END_OF_TURN_TOKEN|>",
            },
        },
    ];

    /// The text of a conversation of `(role, content)`, up to where the assistant's answer begins. `system` is used
    /// when the conversation does not begin with a system message.
    pub(super) fn render(&self, system: Option<&str>, messages: &[(&str, &str)]) -> String {
        let (system, turns) = match messages {
            [("system", text), turns @ ..] => (Some(*text), turns),
            turns => (system, turns),
        };
        let mut out = String::new();
        let mut pending = None;
        if let Some(text) = system {
            match &self.system {
                System::Turn(Turn { before, after }) => out.extend([before, text, after]),
                System::BeforeFirstUser(after) => pending = Some([text, after].concat()),
            }
        }
        for (role, text) in turns {
            let Turn { before, after } = if *role == "user" { &self.user } else { &self.assistant };
            let first = if *role == "user" { pending.take() } else { None };
            out.extend([before, first.as_deref().unwrap_or(""), text, after]);
        }
        out.push_str(self.assistant.before);
        out
    }

    /// The system message that a rendered conversation has though its messages have none.
    pub(super) fn system_of(&self, text: &str, messages: &[(&str, &str)]) -> Option<String> {
        const PROBE: &str = "\u{1}";
        let expected = self.render(Some(PROBE), messages);
        let (before, after) = expected.split_once(PROBE)?;
        Some(text.strip_prefix(before)?.strip_suffix(after)?.to_owned())
    }
}

//! The format of a chat template, found out by rendering conversations whose contents are recognised in the text.

use qlora_text::{ChatTemplate, Message, RenderInput, Tokenizer};

use super::chat_format::{ChatFormat, System, Turn};
use crate::ExportError;

/// 26 July 2024, the day that Llama's templates take where there is no clock: a Modelfile has none.
const DATE: u64 = 1_721_952_000;

const SYSTEM: (&str, &str) = ("system", "TheSystemMessage");
const FIRST: (&str, &str) = ("user", "TheFirstQuestion");
const ANSWER: (&str, &str) = ("assistant", "TheFirstAnswer");
const SECOND: (&str, &str) = ("user", "TheSecondQuestion");

impl ChatFormat {
    /// The format that renders conversations as the chat template does; `None` when there is none.
    ///
    /// # Errors
    /// When the tokenizer has no chat template, or it is no valid Jinja.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Option<Self>, ExportError> {
        let jinja = Jinja::new(tokenizer)?;
        Ok(jinja.format().filter(|format| jinja.agrees_with(format)))
    }
}

/// A template, and the token that llama.cpp puts in front of its text.
struct Jinja {
    template: ChatTemplate,
    bos: String,
}

impl Jinja {
    fn new(tokenizer: &Tokenizer) -> Result<Self, ExportError> {
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos()).and_then(|bos| tokenizer.token(bos));
        let template = tokenizer.chat_template()?.with_time(DATE);
        Ok(Self { template, bos: bos.unwrap_or_default() })
    }

    /// The text of a conversation without the beginning token; `None` when the template refuses it.
    fn render(&self, messages: &[(&str, &str)], add_generation_prompt: bool) -> Option<String> {
        let messages: Vec<Message> =
            messages.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let input = RenderInput { messages: &messages, add_generation_prompt, ..RenderInput::default() };
        let text = self.template.render(&input).ok()?.text;
        Some(text.strip_prefix(&self.bos).map_or(text.clone(), str::to_owned))
    }

    /// The text before, between and after the contents of a conversation. `None` when one is not there.
    fn around<const N: usize>(
        &self,
        messages: [(&str, &str); N],
        add_generation_prompt: bool,
    ) -> Option<([String; N], String)> {
        let text = self.render(&messages, add_generation_prompt)?;
        let (mut rest, mut before) = (text.as_str(), [const { String::new() }; N]);
        for ((_, content), before) in messages.iter().zip(&mut before) {
            let (piece, after) = rest.split_once(content)?;
            *before = piece.to_owned();
            rest = after;
        }
        Some((before, rest.to_owned()))
    }

    /// The format that renders these conversations as the template does; others have to be compared.
    fn format(&self) -> Option<ChatFormat> {
        let ([opening, between, next], prompt) = self.around([FIRST, ANSWER, SECOND], true)?;
        let end_of_answer = self.around([FIRST, ANSWER], false).map(|(_, end)| end);
        let (answer_after, user_before) = cut(&opening, &next, end_of_answer.as_deref());
        // The same text follows a question whether its answer is there or not; what is beyond is the answer's.
        let end_of_question = self.around([FIRST], false).map(|(_, end)| end);
        let common = |end: &&str| between.starts_with(end) && prompt.starts_with(end);
        let user_after = [end_of_question.as_deref(), Some(&answer_after)]
            .into_iter()
            .flatten()
            .find(common)
            .unwrap_or("");

        let user = Turn::new(&user_before, user_after);
        let opening = opening.strip_suffix(&user_before)?;
        let (start, system) = self.system(opening, &user_before)?;
        Some(ChatFormat {
            no_system: opening.strip_prefix(&start)?.to_owned(),
            start,
            system,
            assistant: Turn::new(&between[user_after.len()..], &answer_after),
            answer: prompt[user_after.len()..].to_owned(),
            user,
        })
    }

    /// What all conversations begin with, `opening` being what those without a system message do, and where one goes.
    fn system(&self, opening: &str, user_before: &str) -> Option<(String, System)> {
        let Some(([before, between], _)) = self.around([SYSTEM, FIRST], true) else {
            // The template has no place for one. The makers of such models write it in front of the question.
            return Some((opening.to_owned(), System::BeforeFirstUser(Turn::new("", "\n\n"))));
        };
        if let Some(after) = between.strip_suffix(user_before) {
            let (start, before) =
                before.strip_prefix(opening).map_or(("", before.as_str()), |before| (opening, before));
            return Some((start.to_owned(), System::Turn(Turn::new(before, after))));
        }
        let (start, before) = before.split_once(user_before)?;
        Some((start.to_owned(), System::BeforeFirstUser(Turn::new(before, between))))
    }

    fn agrees_with(&self, format: &ChatFormat) -> bool {
        let system = ("system", "Be short.\nAnd kind.");
        let turns = [
            ("user", "Question?"),
            ("assistant", "An answer,\n\nof two lines."),
            ("user", "Another \"one\"?"),
            ("assistant", "Yes"),
            ("user", "More of it"),
        ];
        let same = |messages: &[(&str, &str)]| {
            self.render(messages, true).is_some_and(|text| text == format.render(messages))
        };
        let takes_system = self.around([SYSTEM, FIRST], true).is_some();
        [1, 3, 5].into_iter().all(|count| {
            same(&turns[..count]) && (!takes_system || same(&[&[system], &turns[..count]].concat()))
        })
    }
}

/// Cuts what stands between an answer and the next question where the turn of the answer ends.
fn cut(opening: &str, between: &str, end_of_answer: Option<&str>) -> (String, String) {
    let question = end_of_answer.and_then(|end| between.strip_prefix(end));
    // Else what the first question and the second have in common, such as without a token that only one has.
    let question = question.filter(|before| opening.ends_with(before)).unwrap_or_else(|| {
        let common = opening.chars().rev().zip(between.chars().rev()).take_while(|(a, b)| a == b);
        &between[between.len() - common.map(|(c, _)| c.len_utf8()).sum::<usize>()..]
    });
    (between[..between.len() - question.len()].to_owned(), question.to_owned())
}

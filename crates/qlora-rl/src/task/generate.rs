//! How problems are drawn: ChaCha8 keyed by the seed, problem `i` from stream `i`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::json;

use super::{Problem, Task};

struct Draw(ChaCha8Rng);

impl Draw {
    /// From `low` to `high`, both included.
    fn number(&mut self, low: i64, high: i64) -> i64 {
        let span = (high - low) as u64 + 1;
        low + (self.0.next_u64() % span) as i64
    }

    fn one_of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[self.number(0, choices.len() as i64 - 1) as usize]
    }
}

pub(super) fn problems(task: Task, count: usize, seed: u64) -> Vec<Problem> {
    let problem = |index: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index as u64);
        let draw = &mut Draw(rng);
        match task {
            Task::Arithmetic => arithmetic(draw),
            Task::Countdown => countdown(draw),
            Task::ChainSum => chain_sum(draw),
            Task::LetterCount => letter_count(draw),
            Task::WordProblem => word_problem(draw),
        }
    };
    (0..count).map(problem).collect()
}

fn arithmetic(draw: &mut Draw) -> Problem {
    let (a, b) = (draw.number(0, 99), draw.number(0, 99));
    let (question, answer) = match draw.number(0, 2) {
        0 => (format!("What is {a} + {b}?"), a + b),
        1 => (format!("What is {} - {}?", a.max(b), a.min(b)), (a - b).abs()),
        _ => (format!("What is {} * {b}?", a % 13), (a % 13) * b),
    };
    Problem::new(Task::Arithmetic, question, answer)
}

fn countdown(draw: &mut Draw) -> Problem {
    // From left to right, every step a whole number of at least 1: one solution is known.
    let count = draw.number(3, 4);
    let mut numbers = vec![draw.number(1, 50)];
    let mut value = numbers[0];
    let mut solution = value.to_string();
    for _ in 1..count {
        let next = draw.number(1, 25);
        let (sign, result) = match draw.number(0, 3) {
            0 if value * next <= 500 => ('*', value * next),
            1 if value > next => ('-', value - next),
            2 if value % next == 0 => ('/', value / next),
            _ => ('+', value + next),
        };
        solution = format!("({solution} {sign} {next})");
        numbers.push(next);
        value = result;
    }
    // In another order than that of the solution.
    numbers.sort_unstable();
    let question = format!(
        "Using the numbers {numbers:?}, each exactly once, and the operations + - * /, write an expression that \
         equals {value}."
    );
    let mut problem = Problem::new(Task::Countdown, question, solution);
    problem.columns.insert("numbers".into(), json!(numbers));
    problem.columns.insert("target".into(), json!(value));
    problem
}

fn chain_sum(draw: &mut Draw) -> Problem {
    let mut value = draw.number(1, 99);
    let mut text = value.to_string();
    for _ in 0..draw.number(2, 5) {
        let next = draw.number(1, 99);
        let sign = draw.number(0, 1);
        value += if sign == 0 { next } else { -next };
        text.push_str(&format!(" {} {next}", if sign == 0 { '+' } else { '-' }));
    }
    Problem::new(Task::ChainSum, format!("What is {text}?"), value)
}

fn letter_count(draw: &mut Draw) -> Problem {
    const WORDS: [&str; 24] = [
        "strawberry",
        "mississippi",
        "banana",
        "committee",
        "bookkeeper",
        "engineering",
        "parallel",
        "occurrence",
        "embarrass",
        "hippopotamus",
        "accommodation",
        "assassin",
        "raccoon",
        "balloon",
        "coffee",
        "letter",
        "success",
        "address",
        "possession",
        "tomorrow",
        "referee",
        "puppy",
        "millennium",
        "questionnaire",
    ];
    let word = draw.one_of(&WORDS);
    // Now and then a letter that may not be there.
    let letter = match draw.number(0, 4) {
        0 => char::from(b'a' + draw.number(0, 25) as u8),
        _ => char::from(word.as_bytes()[draw.number(0, word.len() as i64 - 1) as usize]),
    };
    let answer = word.matches(letter).count();
    let question = format!("How many times does the letter \"{letter}\" appear in \"{word}\"?");
    Problem::new(Task::LetterCount, question, answer)
}

fn word_problem(draw: &mut Draw) -> Problem {
    let name = draw.one_of(&["Ada", "Ben", "Chidi", "Dara", "Emre", "Fatima", "Goran", "Hana"]);
    let thing = draw.one_of(&["apples", "books", "coins", "cards", "shells", "stickers"]);
    let (a, b, c) = (draw.number(2, 20), draw.number(2, 20), draw.number(2, 9));
    let (question, answer) = match draw.number(0, 4) {
        0 => (
            format!("{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?"),
            a + b,
        ),
        1 => (format!("{name} has {} {thing} and gives away {a}. How many {thing} are left?", a + b), b),
        2 => (format!("{name} buys {c} boxes of {a} {thing} each. How many {thing} is that?"), a * c),
        3 => {
            (format!("{name} shares {} {thing} equally among {c} friends. How many does each get?", a * c), a)
        }
        _ => (
            format!("{name} has {c} bags of {a} {thing} and loses {}. How many {thing} are left?", b.min(a)),
            a * c - b.min(a),
        ),
    };
    Problem::new(Task::WordProblem, question, answer)
}

#[cfg(test)]
mod tests {
    use super::super::countdown::solves;
    use super::*;

    #[test]
    fn problems_are_a_function_of_the_seed_and_their_answers_are_right() {
        for (name, task) in Task::NAMED {
            let many = task.problems(200, 7);
            assert_eq!(many[..20], task.problems(20, 7), "{name}");
            assert_ne!(many, task.problems(200, 8), "{name}");
            for problem in &many {
                assert_eq!(problem.columns["task"], name);
                if task == Task::Countdown {
                    let numbers: Vec<i64> =
                        serde_json::from_value(problem.columns["numbers"].clone()).unwrap();
                    let target = problem.columns["target"].as_i64().unwrap();
                    assert!(solves(&problem.answer, &numbers, target), "{problem:?}");
                } else {
                    assert!(problem.answer.parse::<i64>().is_ok(), "{problem:?}");
                }
            }
        }
    }

    #[test]
    fn chains_add_up() {
        for problem in Task::ChainSum.problems(50, 3) {
            let text = problem.question.trim_start_matches("What is ").trim_end_matches('?');
            let mut words = text.split(' ');
            let mut value: i64 = words.next().unwrap().parse().unwrap();
            while let (Some(sign), Some(number)) = (words.next(), words.next()) {
                let number: i64 = number.parse().unwrap();
                value += if sign == "+" { number } else { -number };
            }
            assert_eq!(value.to_string(), problem.answer);
        }
    }
}

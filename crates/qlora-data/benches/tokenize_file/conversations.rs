//! Conversations that look like those of chat data sets: frequent words and rare ones as in English text, numbers,
//! lists, code, other scripts. The same rows for the same seed, whatever the machine.

use std::fmt::Write as _;
use std::io::{self, Write};

const FREQUENT: &str = "the of and to a in is that it for you was with on as are be this have from or had by not but what \
    all were when we there can an your which their said if do will each about how up out them then she many some so \
    these would other into has more her two like him see time could no make than first been its who now people my made \
    over did down only way find use may water long little very after words called just where most know get through back \
    much go good new write our me man too any day same right look think also around another came come work three word \
    must because does part even place well such here take why things help put years different away again off went old \
    number great tell men say small every found still between name should home big give air line set own under read last \
    never us left end along while might next sound below saw something thought both few those always looked show large \
    often together asked house world going want school important until form food keep children feet land side without boy \
    once animals life enough took sometimes four head above kind began almost live page got earth need far hand high year \
    mother light parts country father let night following picture being study second eyes soon times story boys since \
    white days ever paper hard near sentence better best across during today others however sure means knew try told young";
const BEGINNINGS: &str = "con de dis ex in inter pre pro re sub trans un over under out mis non anti auto bi co counter \
    en fore hyper micro mono multi para per poly post semi super tele tri ultra";
const ROOTS: &str = "act bas cap cept cit clud cod cogn cred cycl dat dict duc duct fact fer fin flect flu form fus gen \
    graph gress ject jur just langu leg loc log man mand mark mit mot move nat not numer oper ord part pend phon plic \
    ply pon port pos press quest quir rat rupt scrib script sect sens sequ serv sign sist spec spir stat struct sum tain \
    tect tend terr test tort tract turb val ven vers vid vis voc volv work";
const ENDINGS: &str = "able al ance ation ed ence ent er es est ful ial ible ic ical ing ion ish ism ist ity ive ize less \
    ly ment ness or ous s ter tion ty ure y";
const OTHER: [&str; 12] = [
    "naïve",
    "Zürich",
    "déjà vu",
    "São Paulo",
    "ελληνικά",
    "русский язык",
    "日本語のテキスト",
    "你好，世界",
    "한국어",
    "👍",
    "→",
    "café",
];
const CODE: [&str; 6] = [
    "```python\\nfor i in range(10):\\n    print(i ** 2)\\n```",
    "`let total: u64 = rows.iter().map(|row| row.len() as u64).sum();`",
    "```sql\\nSELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY name;\\n```",
    "`git commit -m \\\"fix\\\"`",
    "https://example.org/path?query=1&page=2",
    "{\\\"key\\\": [1, 2.5, null]}",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// 1 to `limit`, the n-th about as often as 1/n.
    fn zipf(&mut self, limit: usize) -> usize {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        ((limit as f64).powf(uniform) as usize).clamp(1, limit)
    }
}

struct Words {
    frequent: Vec<&'static str>,
    beginnings: Vec<&'static str>,
    roots: Vec<&'static str>,
    endings: Vec<&'static str>,
}

impl Words {
    fn new() -> Self {
        let list = |text: &'static str| text.split_whitespace().collect();
        Self {
            frequent: list(FREQUENT),
            beginnings: list(BEGINNINGS),
            roots: list(ROOTS),
            endings: list(ENDINGS),
        }
    }

    fn push(&self, rank: usize, into: &mut String) {
        match self.frequent.get(rank - 1) {
            Some(word) => into.push_str(word),
            None => {
                // The rank tells the parts, so that a rare word is the same each time.
                let mut parts = Random(rank as u64);
                if parts.below(3) > 0 {
                    into.push_str(self.beginnings[parts.below(self.beginnings.len())]);
                }
                into.push_str(self.roots[parts.below(self.roots.len())]);
                into.push_str(self.endings[parts.below(self.endings.len())]);
            }
        }
    }
}

/// So many words as the inside of a JSON string.
fn text(words: &Words, count: usize, random: &mut Random, into: &mut String) {
    const DISTINCT: usize = 60_000;
    let mut begins = true;
    for at in 0..count {
        if at > 0 && !into.ends_with("\\n") {
            into.push(' ');
        }
        let start = into.len();
        match random.below(200) {
            0 => into.push_str(OTHER[random.below(OTHER.len())]),
            1 => into.push_str(CODE[random.below(CODE.len())]),
            2..7 => drop(write!(into, "{}", random.zipf(1_000_000))),
            _ => words.push(random.zipf(DISTINCT), into),
        }
        if begins && let Some(first) = into[start..].chars().next().filter(char::is_ascii_lowercase) {
            into.replace_range(start..start + 1, &first.to_ascii_uppercase().to_string());
        }
        begins = false;
        match random.below(100) {
            0..8 => into.push(','),
            8..15 => {
                into.push_str([".", ".", ".", "?", "!", ":"][random.below(6)]);
                begins = true;
            }
            15 => into.push_str("'s"),
            16 => {
                into.push_str(["\\n\\n", ".\\n- ", ".\\n"][random.below(3)]);
                begins = true;
            }
            _ => {}
        }
    }
    into.push('.');
}

/// Writes so many lines of `{"messages": [..]}`, about a kilobyte each.
pub(crate) fn write(rows: usize, mut out: impl Write) -> io::Result<()> {
    let (words, mut random) = (Words::new(), Random(20_261_124));
    let mut line = String::new();
    for row in 0..rows {
        line.clear();
        line.push_str("{\"messages\": [");
        if random.below(4) == 0 {
            line.push_str("{\"role\": \"system\", \"content\": \"You are a helpful assistant.\"}, ");
        }
        let turns = [1, 1, 1, 2, 3][random.below(5)];
        for turn in 0..turns {
            let separator = if turn > 0 { ", " } else { "" };
            let _ = write!(line, "{separator}{{\"role\": \"user\", \"content\": \"");
            let count = 5 + random.below(30);
            text(&words, count, &mut random, &mut line);
            line.push_str("\"}, {\"role\": \"assistant\", \"content\": \"");
            let count = 10 + random.below(95);
            text(&words, count, &mut random, &mut line);
            line.push_str("\"}");
        }
        let _ = writeln!(line, "], \"id\": {row}}}");
        out.write_all(line.as_bytes())?;
    }
    out.flush()
}

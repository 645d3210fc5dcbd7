//! Expressions of whole numbers, evaluated exactly.

/// Whether an expression uses each number exactly once, nothing else but `+ - * / ( )`, and has the target as its
/// value. An `= value` at the end is left out.
pub(super) fn solves(expression: &str, numbers: &[i64], target: i64) -> bool {
    let expression = expression.split('=').next().unwrap_or_default();
    // No expression of that few numbers is longer.
    if expression.len() > 200 {
        return false;
    }
    let text: String = expression.replace(['×', '·'], "*").replace('÷', "/").replace('−', "-");
    let mut parser = Parser { bytes: text.as_bytes(), at: 0, used: Vec::new() };
    let Some(value) = parser.sum(0) else { return false };
    let mut wanted = numbers.to_vec();
    wanted.sort_unstable();
    parser.used.sort_unstable();
    parser.peek().is_none()
        && parser.used == wanted
        && Some(value.0) == value.1.checked_mul(i128::from(target))
}

/// Numerator and denominator, which is not 0.
type Fraction = (i128, i128);

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    used: Vec<i64>,
}

/// How deep parentheses go.
const DEEPEST: usize = 20;

impl Parser<'_> {
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn sum(&mut self, depth: usize) -> Option<Fraction> {
        let mut value = self.product(depth)?;
        while let Some(operator @ (b'+' | b'-')) = self.peek() {
            self.at += 1;
            let (a, b) = self.product(depth)?;
            let (left, right) = (value.0.checked_mul(b)?, a.checked_mul(value.1)?);
            let top = if operator == b'+' { left.checked_add(right)? } else { left.checked_sub(right)? };
            value = (top, value.1.checked_mul(b)?);
        }
        Some(value)
    }

    fn product(&mut self, depth: usize) -> Option<Fraction> {
        let mut value = self.factor(depth)?;
        while let Some(operator @ (b'*' | b'/')) = self.peek() {
            self.at += 1;
            let (a, b) = self.factor(depth)?;
            let (a, b) = if operator == b'*' { (a, b) } else { (b, a) };
            value = (value.0.checked_mul(a)?, value.1.checked_mul(b)?);
            if value.1 == 0 {
                return None;
            }
        }
        Some(value)
    }

    fn factor(&mut self, depth: usize) -> Option<Fraction> {
        match self.peek()? {
            b'(' if depth < DEEPEST => {
                self.at += 1;
                let value = self.sum(depth + 1)?;
                (self.peek()? == b')').then(|| self.at += 1)?;
                Some(value)
            }
            digit if digit.is_ascii_digit() => {
                let start = self.at;
                while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                    self.at += 1;
                }
                let number: i64 = std::str::from_utf8(&self.bytes[start..self.at]).ok()?.parse().ok()?;
                self.used.push(number);
                Some((i128::from(number), 1))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::solves;

    #[test]
    fn expressions_are_checked_exactly() {
        let numbers = [25, 3, 4, 3];
        assert!(solves("(25 - 4) * 3 / 3", &numbers, 21));
        assert!(solves("(25 − 4) × 3 ÷ 3 = 21", &numbers, 21));
        assert!(!solves("(25 - 4) * 3 / 3", &numbers, 22));
        assert!(!solves("25 - 4", &numbers, 21), "numbers are left over");
        assert!(!solves("25 - 4 + 3 - 3 + 0", &numbers, 21), "a number of its own");
        assert!(solves("8 / (3 - 8 / 3)", &[8, 3, 8, 3], 24), "fractions on the way");
        for broken in ["", "(", "25 -", "25 / (3 - 3) * 4", "a + 3", "-25", "25 4 3 3"] {
            assert!(!solves(broken, &numbers, 21), "{broken}");
        }
        assert!(!solves(&"(".repeat(100), &numbers, 21));
        assert!(!solves(&format!("{0}*{0}*{0}", i64::MAX), &[i64::MAX; 3], 1), "overflow");
    }
}

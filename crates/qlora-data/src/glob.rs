//! Names with `*`, `?` and `**`.

/// Whether a pattern has anything to expand.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether a path matches: `*` stands for any characters but `/`, `?` for one of them, and the part `**` for any
/// folders.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    // `reach[i]`: the parts of the pattern so far match the first `i` parts of the path.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for part in pattern {
        if part == "**" {
            let first = reach.iter().position(|&reached| reached).unwrap_or(reach.len());
            reach[first..].fill(true);
        } else {
            for i in (0..path.len()).rev() {
                reach[i + 1] = reach[i] && part_matches(part, path[i]);
            }
            reach[0] = false;
        }
    }
    reach[path.len()]
}

fn part_matches(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    for wanted in pattern.chars() {
        if wanted == '*' {
            let first = reach.iter().position(|&reached| reached).unwrap_or(reach.len());
            reach[first..].fill(true);
        } else {
            for i in (0..name.len()).rev() {
                reach[i + 1] = reach[i] && (wanted == '?' || wanted == name[i]);
            }
            reach[0] = false;
        }
    }
    reach[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("data/*.jsonl", "data/a.jsonl", true),
            ("data/*.jsonl", "data/x/a.jsonl", false),
            ("data/**/*.md", "data/a.md", true),
            ("data/**/*.md", "data/x/y/a.md", true),
            ("**", "a/b", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("train-*-of-*", "train-0-of-2", true),
            ("*", "", true),
            ("a", "b", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
        // Linear for what makes backtracking explode.
        assert!(!matches(&"*a".repeat(60), &"a".repeat(59)));
    }
}

//! The token for the hub, where Hugging Face's own library looks for it.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::hub_cache::hugging_face_home;

/// `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else what `hf auth login` wrote: the file `HF_TOKEN_PATH`, or `token` in
/// Hugging Face's folder. Spaces and line ends around it are no part of it.
pub(crate) fn find(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<String> {
    let given = |name| variable(name).and_then(|value| clean(value.to_str()?));
    given("HF_TOKEN").or_else(|| given("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
        let named = variable("HF_TOKEN_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = named.or_else(|| Some(hugging_face_home(variable)?.join("token")))?;
        clean(&std::fs::read_to_string(file).ok()?)
    })
}

fn clean(token: &str) -> Option<String> {
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn found(variables: &[(&str, &Path)]) -> Option<String> {
        find(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn variables_come_before_files() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let [text, old] = ["  hf_text\n", "hf_old"].map(Path::new);
        assert_eq!(found(&[("HOME", home)]), None);
        let places = ["named", ".cache/huggingface/token", "other/token", "xdg/huggingface/token"];
        for place in places {
            fs::create_dir_all(home.join(place).parent().unwrap()).unwrap();
            fs::write(home.join(place), format!("hf_{}\r\n", place.len())).unwrap();
        }
        let [named, other, xdg] = ["named", "other", "xdg"].map(|name| home.join(name));
        let mut all: Vec<(&str, &Path)> = vec![
            ("HF_TOKEN", text),
            ("HUGGING_FACE_HUB_TOKEN", old),
            ("HF_TOKEN_PATH", &named),
            ("HF_HOME", &other),
            ("XDG_CACHE_HOME", &xdg),
            ("HOME", home),
        ];
        for expected in ["hf_text", "hf_old", "hf_5", "hf_11", "hf_21", "hf_24"] {
            assert_eq!(found(&all).as_deref(), Some(expected), "{all:?}");
            all.remove(0);
        }
        // An empty one is none.
        assert_eq!(found(&[("HF_TOKEN", Path::new(" ")), ("HF_HOME", &other)]).as_deref(), Some("hf_11"));
    }
}

//! The `quant_state` JSON, written byte for byte as Python's `json.dumps` does.

use serde_json::{Map, Value};

use crate::{BlockSize, SourceDtype};

/// What the JSON says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct QuantState {
    pub(super) block_size: BlockSize,
    pub(super) dtype: SourceDtype,
    pub(super) shape: Vec<usize>,
    pub(super) nested: Option<Nested>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Nested {
    pub(super) block_size: BlockSize,
    pub(super) offset: f32,
}

/// A key of the JSON and what is wrong with it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) key: &'static str,
    pub(super) reason: String,
}

impl QuantState {
    pub(super) fn to_json(&self) -> String {
        let dtype = match self.dtype {
            SourceDtype::F32 => "float32",
            SourceDtype::F16 => "float16",
            SourceDtype::Bf16 => "bfloat16",
        };
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let mut json = format!(
            r#"{{"quant_type": "nf4", "blocksize": {}, "dtype": "{dtype}", "shape": [{}]"#,
            self.block_size.get(),
            shape.join(", "),
        );
        if let Some(Nested { block_size, offset }) = self.nested {
            json += &format!(
                r#", "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {}"#,
                block_size.get(),
                python_repr(f64::from(offset)),
            );
        }
        json + "}"
    }

    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, Fault> {
        let object: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|error| fault("", format!("not a JSON object: {error}")))?;
        match text(&object, "quant_type")? {
            "nf4" => {}
            other => return Err(fault("quant_type", format!("`{other}` is not supported; expected `nf4`"))),
        }
        let dtype = match text(&object, "dtype")?.trim_start_matches("torch.") {
            "float32" => SourceDtype::F32,
            "float16" => SourceDtype::F16,
            "bfloat16" => SourceDtype::Bf16,
            other => {
                let reason = format!("`{other}` is not supported; expected float32, float16 or bfloat16");
                return Err(fault("dtype", reason));
            }
        };
        let shape = field(&object, "shape")?
            .as_array()
            .and_then(|sizes| sizes.iter().map(|size| usize::try_from(size.as_u64()?).ok()).collect())
            .ok_or_else(|| fault("shape", "expected a list of sizes".to_owned()))?;
        let nested = if object.keys().any(|key| key.starts_with("nested_")) {
            match text(&object, "nested_dtype")? {
                "float32" => {}
                other => {
                    let reason = format!("`{other}` is not supported; expected `float32`");
                    return Err(fault("nested_dtype", reason));
                }
            }
            let offset = field(&object, "nested_offset")?.as_f64().map(|offset| offset as f32);
            Some(Nested {
                block_size: block_size(&object, "nested_blocksize")?,
                offset: offset.filter(|offset| offset.is_finite()).ok_or_else(|| {
                    fault("nested_offset", "expected a number in the range of f32".to_owned())
                })?,
            })
        } else {
            None
        };
        Ok(Self { block_size: block_size(&object, "blocksize")?, dtype, shape, nested })
    }
}

fn fault(key: &'static str, reason: String) -> Fault {
    Fault { key, reason }
}

fn field<'a>(object: &'a Map<String, Value>, key: &'static str) -> Result<&'a Value, Fault> {
    object.get(key).ok_or_else(|| fault(key, "the key is missing".to_owned()))
}

fn text<'a>(object: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, Fault> {
    field(object, key)?.as_str().ok_or_else(|| fault(key, "expected a text".to_owned()))
}

fn block_size(object: &Map<String, Value>, key: &'static str) -> Result<BlockSize, Fault> {
    let size = field(object, key)?.as_u64().and_then(|size| usize::try_from(size).ok());
    let size = size.ok_or_else(|| fault(key, "expected a number of elements".to_owned()))?;
    BlockSize::new(size).map_err(|error| fault(key, error.to_string()))
}

/// A finite number as Python writes it: the shortest digits that read back equal, in exponent form
/// below 1e-4 and from 1e16 on, with two digits of exponent or more.
fn python_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is an integer");
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
    } else {
        // `{:?}` has the same digits and, like Python, keeps a `.0`; it never uses an exponent here
        // but between 1e-5 and 1e-4, which the other branch takes.
        format!("{value:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.1f32.into(), "0.10000000149011612"),
            (0.0001, "0.0001"),
            (0.00009999, "9.999e-05"),
            (1e-5, "1e-05"),
            (1.5e-300, "1.5e-300"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1e22, "1e+22"),
            (f32::MAX.into(), "3.4028234663852886e+38"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_repr(value), expected);
        }
    }

    #[test]
    fn a_state_reads_back_equal() {
        let plain = QuantState {
            block_size: BlockSize::new(4096).unwrap(),
            dtype: SourceDtype::F16,
            shape: vec![3],
            nested: None,
        };
        let nested = Some(Nested { block_size: BlockSize::EIGHT_BIT, offset: 1.2e-7 });
        for state in [QuantState { nested, ..plain.clone() }, plain] {
            assert_eq!(QuantState::from_json(state.to_json().as_bytes()).unwrap(), state);
        }
    }

    #[test]
    fn every_fault_names_its_key() {
        let good = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [4, 8],
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}"#;
        assert!(QuantState::from_json(good.as_bytes()).is_ok());
        let cases = [
            (r#""nf4""#, r#""fp4""#, "quant_type"),
            (r#""nf4""#, "4", "quant_type"),
            (r#""quant_type""#, r#""type""#, "quant_type"),
            ("64", "0", "blocksize"),
            ("64", "63", "blocksize"),
            ("64", "-64", "blocksize"),
            ("64", "64.0", "blocksize"),
            ("64", "18446744073709551616", "blocksize"),
            (r#""dtype": "float32", "shape""#, r#""dtype": "float64", "shape""#, "dtype"),
            ("[4, 8]", "32", "shape"),
            ("[4, 8]", "[4, -8]", "shape"),
            ("[4, 8]", "[4, 8.5]", "shape"),
            ("256", "100", "nested_blocksize"),
            (r#""nested_dtype": "float32""#, r#""nested_dtype": "float16""#, "nested_dtype"),
            ("0.5", "1e300", "nested_offset"),
            ("0.5", "null", "nested_offset"),
            (r#""nested_offset""#, r#""offset""#, "nested_offset"),
            ("0.5", "NaN", ""),
            ("{", "[", ""),
        ];
        for (from, to, key) in cases {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(QuantState::from_json(bad.as_bytes()).unwrap_err().key, key, "{bad}");
        }
        assert_eq!(QuantState::from_json(&[b'['; 100_000]).unwrap_err().key, "");
        assert_eq!(QuantState::from_json(b"\xff{}").unwrap_err().key, "");
    }
}

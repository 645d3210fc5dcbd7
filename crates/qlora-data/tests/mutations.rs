//! Damaged files of every kind: no panic, no hang, no memory that the file does not justify. The inputs are the
//! seeds of the fuzz targets, mutated; the fuzzer itself needs a nightly compiler (see fuzz/README.md).

#[path = "../../../fuzz/src/data.rs"]
#[allow(unreachable_pub)]
mod targets;

use qlora_testing::mutations::run;

/// One after another: they share a folder.
#[test]
fn damaged_files_are_refused() {
    run("json", targets::json);
    run("table", targets::table);
    if cfg!(feature = "parquet") {
        run("parquet", targets::parquet);
    }
}

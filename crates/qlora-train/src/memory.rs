//! How much memory the process has used.

/// The most memory this process has held at a time (peak resident set), in MB of 10⁶ bytes.
///
/// `None` where the system does not tell: anywhere but on Linux.
#[must_use]
pub fn peak_memory_mb() -> Option<f64> {
    if cfg!(target_os = "linux") {
        peak_of(&std::fs::read_to_string("/proc/self/status").ok()?)
    } else {
        None
    }
}

/// The `VmHWM` line of `/proc/self/status`, which counts in KiB.
fn peak_of(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_and_rises() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t 1 kB\n"), Some(2.048));
        assert_eq!(peak_of("VmHWM:\t 12 pages\n"), None);
        assert_eq!(peak_of(""), None);
        if let Some(before) = peak_memory_mb() {
            let block = std::hint::black_box(vec![1_u8; 64 << 20]);
            assert!(peak_memory_mb().unwrap() >= before.max(64.0), "{before}");
            drop(block);
        }
    }
}

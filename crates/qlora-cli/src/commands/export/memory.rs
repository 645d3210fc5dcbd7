//! Memory that models may take.

use std::fs;
use std::path::Path;

use crate::backend::device_memory;

/// Bytes that are free on this machine and within the limits of the program's control groups, at most those of the GPU
/// that is computed on; no limit where the system does not say.
pub(super) fn free_memory() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    let machine = machine.map_or(u64::MAX, |kilobytes| kilobytes.saturating_mul(1024));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = within_groups(Path::new("/sys/fs/cgroup"), &groups);
    machine.min(groups).min(device_memory().unwrap_or(u64::MAX))
}

/// The least of what the group named in `/proc/self/cgroup` and those above it have left (control groups of version 2).
fn within_groups(root: &Path, groups: &str) -> u64 {
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return u64::MAX };
    let folder = root.join(group);
    let groups = folder.ancestors().take_while(|folder| folder.starts_with(root));
    groups.filter_map(left_in_group).min().unwrap_or(u64::MAX)
}

/// `None` for a group without a limit.
fn left_in_group(folder: &Path) -> Option<u64> {
    let number = |name| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (most, used) = (number("memory.max")?, number("memory.current")?);
    let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    // Pages of files are given back when memory is needed.
    let files = ["active_file ", "inactive_file "]
        .iter()
        .filter_map(|key| statistics.lines().find_map(|line| line.strip_prefix(key))?.parse::<u64>().ok());
    Some(most.saturating_sub(used.saturating_sub(files.sum())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |group: &str, most: &str, used: &str, statistics: &str| {
            let folder = root.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in [("memory.max", most), ("memory.current", used), ("memory.stat", statistics)]
            {
                fs::write(folder.join(name), text).unwrap();
            }
        };
        write("a", "1000\n", "700\n", "anon 400\nactive_file 100\ninactive_file 200\n");
        write("a/b", "max\n", "700\n", "");
        write("a/c", "500\n", "450\n", "anon 450\n");
        let left = |groups: &str| within_groups(root.path(), groups);
        assert_eq!(left("0::/a\n"), 600);
        assert_eq!(left("1:cpu:/x\n0::/a/b\n"), 600);
        assert_eq!(left("0::/a/c\n"), 50);
        assert_eq!(left("0::/absent\n"), u64::MAX);
        assert_eq!(left("4:memory:/a\n"), u64::MAX);
    }
}

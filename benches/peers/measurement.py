"""What both scripts share: each configuration in a process of its own, timed, one JSON object per line.

The parent imports nothing heavy: a child's peak memory is its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", metavar="NAME/DTYPE", help="one configuration, in this process")
    parser.add_argument("--list", action="store_true", help="print the configurations and stop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2, help="runs that are not counted")
    parser.add_argument("--runs", type=int, default=7, help="runs that are counted")
    return parser


def main(options, configurations, measure):
    """`configurations`: names, as --only takes them. `measure(name, options)` returns the JSON object's fields."""
    if options.list:
        print("\n".join(configurations))
    elif options.only is None:
        run_each(configurations)
    elif options.only in configurations:
        # Libraries that count cores at import must see the limit.
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        print(json.dumps(measure(options.only, options)), flush=True)
    else:
        sys.exit(f"no configuration {options.only}; there are: {', '.join(configurations)}")


def run_each(configurations):
    failed = 0
    for name in configurations:
        child = subprocess.run([sys.executable, *sys.argv, "--only", name], stdout=subprocess.PIPE, text=True)
        if child.returncode == 0:
            print(child.stdout.strip().splitlines()[-1], flush=True)
        else:
            failed += 1
            print(json.dumps({"name": name, "error": f"exit status {child.returncode}, see stderr"}), flush=True)
    sys.exit(1 if failed else 0)


def timed(run, options):
    """Times `run`, and measures the peak memory while it does."""
    for _ in range(options.warmup):
        run()
    reset_peak()
    times = []
    for _ in range(options.runs):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return {
        "ms_min": round(min(times), 2),
        "ms_median": round(statistics.median(times), 2),
        "peak_rss_mb": peak_mb(),
        "runs": options.runs,
        "threads": options.threads,
        "versions": versions(),
    }


def peak_mb():
    """Peak resident memory in MB (1e6 bytes) since the last `reset_peak`, on Linux; elsewhere of the whole process."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return round(int(line.split()[1]) * 1024 / 1e6)
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found

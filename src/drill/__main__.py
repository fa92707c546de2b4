"""Run drills: all, or those named (`make drill ARGS=taking_out`). A drill fails by raising; the others still run."""

import argparse
import importlib
import pkgutil
import sys
import time
import traceback

import drill


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(drill.__path__) if module.name != "__main__")
    parser = argparse.ArgumentParser(description="Run drills; without a name, all.")
    parser.add_argument("names", nargs="*", metavar="|".join(names) or "name")
    chosen = parser.parse_args().names or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no drill is called {', '.join(sorted(unknown))}")
    failed = [name for name in chosen if not _passes(name)]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def _passes(name: str) -> bool:
    begin = time.monotonic()
    print(f"{name}: started", flush=True)
    try:
        importlib.import_module(f"drill.{name}").main()
    except Exception:  # noqa: BLE001 (whatever ends a drill, the others run)
        traceback.print_exc()
        outcome = "FAILED"
    else:
        outcome = "passed"
    print(f"{name}: {outcome} after {time.monotonic() - begin:.0f} s", flush=True)
    return outcome == "passed"


if __name__ == "__main__":
    sys.exit(main())

"""Import every module of an installed fedpeft; run it from a folder that holds no source."""

import importlib
import importlib.util
import pkgutil
import sys

PACKAGES = [
    "fedpeft",
    "fedpeft_kernels",
    "fedpeft_attacks",
    "fedpeft_clients",
    "fedpeft_server",
    "fedpeft_simulations",
]
if importlib.util.find_spec("fedpeft_bench"):  # a checkout; the wheel holds no benchmarks
    PACKAGES.append("fedpeft_bench")

OPTIONAL = {"fedpeft_kernels.gpu.": "triton"}


def wanted(name: str) -> bool:
    """Whether a module can be imported here: what an extra brings may be missing."""
    needs = [extra for prefix, extra in OPTIONAL.items() if name.startswith(prefix)]
    return not name.endswith("__main__") and all(importlib.util.find_spec(extra) for extra in needs)


def main() -> int:
    count = 0
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if wanted(module.name):
                importlib.import_module(module.name)
                count += 1
    print(f"imported {count} modules of {len(PACKAGES)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Import every module of an installed fedpeft; run it from a folder that holds no source."""

import importlib
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


def main() -> int:
    count = 0
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
                count += 1
    print(f"imported {count} modules of {len(PACKAGES)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

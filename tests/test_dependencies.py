"""What the source imports is what ``pyproject.toml`` declares: no more, no less, extras only where needed."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedpeft", "kernels", "attacks", "clients", "server", "simulations")
BENCHMARKS = ROOT / "simulations" / "benchmarks"
GPU = ROOT / "kernels" / "fedpeft_kernels" / "gpu"
"""Loaded where Triton is."""
OWN = re.compile(r"fedpeft(_\w+)?$")
NAMES = {"google": "protobuf", "mlflow": "mlflow", "wandb": "wandb", "faker": "faker"}
"""Modules whose distribution is not installed everywhere, or shares its namespace with others."""
UNSEEN = {
    "gguf": "transformers reads GGUF files with it",
    "bitsandbytes": "transformers loads it for quantised bases",
    "grpcio": "Flower imports it",
    "tensorboard": "torch.utils.tensorboard imports it",
}
"""Declared and imported by none of the wheel's modules, with the reason."""


PEERS = {"jax", "jax_privacy"}
"""What a benchmark compares with where somebody has installed it."""


def _plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = re.compile(r"[A-Za-z0-9._-]+")
    core = {_plain(name.match(entry)[0]) for entry in project["dependencies"]}
    extras = project["optional-dependencies"]
    return core, {extra: {_plain(name.match(entry)[0]) for entry in extras[extra]} for extra in extras}


def _imports(path):
    """Third-party top-level modules that a file imports, and whether it does so as soon as it is imported."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in (full.partition(".")[0] for full in names):
            if name not in sys.stdlib_module_names and not OWN.match(name):
                yield name, id(node) not in lazy


def _distributions(module, known):
    return {NAMES[module]} if module in NAMES else {_plain(name) for name in known.get(module, [module])}


def _sources():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(BENCHMARKS):
                yield path


def test_every_import_is_declared_and_only_the_core_is_imported_at_once():
    core, extras = _declared()
    optional = set().union(*(extras[name] for name in extras if name != "dev"))
    known, wrong = packages_distributions(), list[str]()
    for path in _sources():
        for module, is_at_once in _imports(path):
            found, place = _distributions(module, known), path.relative_to(ROOT)
            if not found & (core | optional):
                wrong.append(f"{place}: {module} is not declared")
            elif is_at_once and not found & core and not path.is_relative_to(GPU):
                wrong.append(f"{place}: {module} comes with an extra; import it where it is used")
    assert not wrong, "\n".join(wrong)


def test_everything_declared_is_imported_or_has_a_reason():
    core, extras = _declared()
    known = packages_distributions()
    used = set().union(*(_distributions(name, known) for path in _sources() for name, _ in _imports(path)))
    shipped = set(extras) - {"dev", "docs", "fuzz", "ray"}
    named = core.union(*(extras[name] for name in shipped))
    assert named - used - set(UNSEEN) == set()
    assert not set(UNSEEN) & used


def test_benchmarks_need_what_setup_installs():
    core, extras = _declared()
    everything, known = core.union(*extras.values()), packages_distributions()
    here = [path for path in BENCHMARKS.rglob("*.py") if path.parent.name != "scripts"]  # run elsewhere
    imported = {name for path in here for name, _ in _imports(path)} - PEERS
    assert [name for name in imported if not _distributions(name, known) & everything] == []


@pytest.mark.parametrize("extra", ["simulation", "reports"])
def test_setup_installs_the_extras_that_the_demo_uses(extra):
    assert extra in re.search(r"-e '\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text())[1].split(",")

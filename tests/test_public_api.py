"""The public interface: what is exported, that it is documented, and that each example of it runs."""

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {"fedpeft": "fedpeft.md", "fedpeft_attacks": "attacks.md", "fedpeft_simulations": "simulations.md"}
HEAVY = ("torch", "transformers", "peft", "flwr", "datasets", "pandas", "numpy", "opacus", "matplotlib")


pytestmark = pytest.mark.usefixtures("example_folder")


def _page(package):
    return (ROOT / "docs" / "api" / PAGES[package]).read_text(encoding="utf-8")


def _sections(package):
    """Text by heading of the page of a package."""
    parts = re.split(r"^## (.+)$", _page(package), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("package", PAGES)
def test_importing_a_package_imports_nothing_heavy(package):
    script = f"import {package}, sys; print([m for m in {HEAVY!r} if m in sys.modules], len(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, count = shown.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert int(count) <= 200


@pytest.mark.parametrize(("before", "after"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_numpy_computes_on_one_thread_unless_the_user_says_otherwise(before, after):
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    script = "import fedpeft, os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**environment, **before})
    assert shown.stdout.strip() == after


@pytest.mark.parametrize("package", PAGES)
def test_every_public_name_is_there_and_shadowed_by_no_module(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(set(module.__all__)) == dir(module)
    for name in module.__all__:
        item = getattr(module, name)
        beside = importlib.util.find_spec(f"{package}.{name}")
        assert beside is None or inspect.ismodule(item), f"{name} would be hidden by the module beside it"


@pytest.mark.parametrize("package", PAGES)
def test_every_public_name_is_documented_with_an_example(package):
    sections = _sections(package)
    assert sorted(sections) == sorted(importlib.import_module(package).__all__)
    for name, text in sections.items():
        assert name == "__version__" or re.search(rf"^::: {package}(\.\w+)*\.{name}$", text, re.MULTILINE)
        assert any(re.search(rf"\b{name}\b", block) for block in _blocks(text)), f"{name} has no example"


@pytest.mark.parametrize("package", PAGES)
def test_the_examples_of_a_page_run(package):
    session = {"__name__": "__main__"}
    for block in _blocks(_page(package)):
        exec(compile(block, PAGES[package], "exec"), session)

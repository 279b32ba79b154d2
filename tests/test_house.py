"""The house's own rules: sizes of files and functions, who imports what at start-up, and how much of it."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedpeft", "kernels", "attacks", "clients", "server", "simulations")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "flwr",
    "datasets",
    "pandas",
    "matplotlib",
    "opacus",
    "dp_accounting",
)
CACHES = {
    "adapters/attach.py:_current",  # the one adapter on the loaded base
    "bases/load.py:_loaded",  # the one loaded base
    "fedpeft_clients/process_cache.py:PROCESS",  # what a node's process keeps between messages
    "ledger/composition_cache.py:_known",  # composed losses of equal releases
    "tokens/adversary_knowledge.py:_LAYERS",  # these five hold facts of an object as long as it lives
    "sequences/matched.py:_NULLS",
    "training/loss.py:_selective",
    "training/modes.py:_steady",
    "dp/engine_selection.py:_engines",
}
"""Module-level state that is meant. Anything else belongs to an object that is handed on, or follows from
arguments alone, as what ``functools.cache`` keeps does."""
EMPTY = "dict list set OrderedDict defaultdict deque WeakKeyDictionary WeakValueDictionary"


def _functions(path):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _length(function):
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return 0 if not body else body[-1].end_lineno - body[0].lineno + 1


def test_no_file_is_longer_than_400_lines():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions count, imports for types alone do not."""
    packages = [path.parent.name for path in SOURCES if _is_top(path)]
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while ready := [module for module, needs in imports.items() if not needs & imports.keys()]:
        for module in ready:
            del imports[module]
    assert not imports, "these import each other, or something that does"


def _is_top(path):
    return path.name == "__init__.py" and not (path.parent.parent / "__init__.py").exists()


# What this project once said, and the plain words for it.
RIDDLES = {
    "no leak found at this power": "not detected",
    "can be had without": "guessing without the update gives",
    "where nothing protects": "with all protections off",
    "stage ladder": "leakage by pipeline stage",
    "replies make a round": "quorum",
    "rounds running": "consecutive rounds",
    "between two questions": "polling interval",
    "thrifty": "low-memory",
    "as if a round had not been": "undo a round",
    "other rooms": "other packages",
    "--judge ": "--eval-data",
    "most_epsilon": "max_epsilon",
    "least_quorum": "min_quorum",
    "privacy.most_noise": "privacy.max_noise_to_signal",
    "secure.least_nodes": "secure.min_nodes",
    "run.arms": "run.baselines",
    "comparison arm": "baseline",
}


def test_code_and_docs_say_it_in_plain_words():
    """Decisions and the change log keep the words of their day."""
    docs = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/kit/*.md"), *ROOT.rglob("*.j2")]
    pages = [page for page in docs if page.name != "CHANGELOG.md" and ".venv" not in page.parts]
    wrong = []
    sources = [path for path in SOURCES if path.name != "renamed.py"]  # which maps the old names to the new
    for path in [*sources, *pages]:
        text = " ".join(path.read_text().lower().split())
        wrong += [
            f"{path.name}: {riddle!r} -> {plain!r}" for riddle, plain in RIDDLES.items() if riddle in text
        ]
    assert not wrong


VAGUE = (
    "law desk post offer stored run_terms letter word tell told judge marks levels crowd stand_in room "
    "wholes found given held kept one own said"
)
"""Names that say nothing of the thing they stand for, or that only this project gave a meaning."""


def _defined_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_names_are_nouns_of_what_they_stand_for():
    vague = {*VAGUE.split(), "runterms", "standin"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in _defined_names(path)
        if name.strip("_").lower() in vague
    ]
    assert not wrong


PLUG_INS = (  # where a name may stand: the plug-ins themselves, and who made them
    "fedpeft/plugins.py",
    "fedpeft/config/models.py",
    "fedpeft/adapters/methods/",
    "fedpeft/exchange/codecs/",
    "fedpeft/aggregation/lora_factors.py",
    "fedpeft/packing/",  # words of a file format, which are older than the registry
    "fedpeft_bench/audit/sequences.py",  # its own stages
)
SHARED = {"none", "auto", "int8"}
"""Names of plug-ins that are also values of other settings: bases, privacy, devices."""


def test_no_code_outside_of_a_plug_in_asks_for_its_name():
    """What is to be known of a plug-in is an attribute of it: lists forget names of other packages."""
    from fedpeft import plugins

    registries = [item for item in vars(plugins).values() if isinstance(item, plugins.Registry)]
    shipped = [name for registry in registries for name in registry.shipped]
    names = {part for name in shipped for part in (name, *name.split("/"))} - SHARED
    wrong = []
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        if any(part in place for part in PLUG_INS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            wrong += [f"{place}: {ast.unparse(node)}" for value in _compared(node) if value in names]
    assert not wrong


def _compared(node):
    """The texts that an expression or a case compares with."""
    sides = [node.value] if isinstance(node, ast.MatchValue) else []
    if isinstance(node, ast.Compare):
        sides = [node.left] if isinstance(node.ops[0], ast.Eq | ast.NotEq) else []
        for side in node.comparators:
            sides += side.elts if isinstance(side, ast.Tuple | ast.Set | ast.List) else [side]
    return [side.value for side in sides if isinstance(side, ast.Constant)]


def test_no_folder_holds_more_than_20_modules():
    folders = collections.Counter(path.parent.relative_to(ROOT) for path in SOURCES)
    assert not {str(folder): count for folder, count in folders.items() if count > 20}


def test_no_more_than_25_file_names_are_used_twice():
    """A name that is said without its folder should mean one file; packages and commands are named alike."""
    names = collections.Counter(path.name for path in SOURCES if path.name != "__init__.py")
    assert len([name for name, count in names.items() if count > 1]) <= 25


def test_no_function_is_longer_than_40_lines_or_takes_more_than_6_parameters():
    """Commands and GPU kernels take as many parameters as they have options and pointers."""
    wrong = []
    for path in SOURCES:
        for function in _functions(path):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            names = [a.arg for a in arguments if a.arg not in ("self", "cls")]
            command = path.name == "cli.py" or path.parent.name == "cli"
            kernel = any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
            if _length(function) > 40 or (len(names) > 6 and not (command or kernel)):
                wrong.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name}")
    assert not wrong


def _grows(value):
    """Whether an expression makes a container that is empty at first, or a cache."""
    if isinstance(value, ast.Call):
        made = ast.unparse(value.func).split("[")[0].split(".")[-1]
        return (made in EMPTY.split() and not value.keywords and not value.args) or made.endswith("Cache")
    return isinstance(value, ast.Dict | ast.List | ast.Set) and not ast.unparse(value)[1:-1]


def test_no_module_holds_a_cache_that_is_not_on_the_list():
    """State of a module is state of every run, adapter and node in a process at once."""
    caches = set()
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _grows(node.value):
                caches |= {f"{path.parent.name}/{path.name}:{ast.unparse(target)}" for target in targets}
    assert caches == CACHES


def test_the_command_line_imports_nothing_heavy():
    script = (
        "import sys; from fedpeft.cli import build_app; build_app(); "
        f"print(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def test_help_imports_few_modules():
    """It starts quickly on every machine; a bare interpreter has about 80 modules, torch some 1,500."""
    script = (
        "import sys; from fedpeft.cli import main; sys.argv = ['fedpeft', '--help']\n"
        "try:\n    main()\nfinally:\n    print(len(sys.modules), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "simulate" in shown.stdout and "audit" in shown.stdout
    assert int(shown.stderr) <= 400


def test_private_names_of_flower_stay_in_one_place():
    public = ("flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation")
    wrong = []
    for path in SOURCES:
        if "flower" in path.parts or path.name.startswith("flower_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            private = [name for name in names if f"{name}.".startswith("flwr.") and name not in public]
            wrong += [f"{path.name}: {name}" for name in private]
    assert not wrong

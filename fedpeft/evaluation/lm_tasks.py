"""Tasks of EleutherAI's lm-eval, from task files at hand, on an adapter and on its base."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.adapters.load_folder import load_adapter, tokenizer_of
from fedpeft.bases.load import load_apart, offline, quiet
from fedpeft.bases.probe import positions_of
from fedpeft.config.models import BaseConfig
from fedpeft.errors import ConfigError, first_line
from fedpeft.extras import needs
from fedpeft.packing.peft_folder import check_weights
from fedpeft.progress_reports import at
from fedpeft.registry import nearest
from fedpeft.training.modes import steady

TASKS_EXTRA = "lm-eval"
REQUESTS_AT_ONCE = 8

Scores = dict[str, dict[str, float]]
"""Of each task, metric to value; a filter's name follows the metric's after a comma where there is one."""


def compare_on_tasks(
    folder: Path, base: BaseConfig, tasks: Sequence[str], files: Path
) -> tuple[Scores, Scores]:
    """Run tasks on a base and, once the adapter is on it, on both.

    Nothing is fetched, and no copy of the tasks' data is kept. A task file may name Python functions, which
    lm-eval runs.

    Args:
        folder: an adapter folder.
        base: its base.
        tasks: names of tasks, tags or groups.
        files: folder of lm-eval's task files (YAML).

    Returns:
        Scores of the adapter, scores of the base.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown or fails, or the adapter does not fit.
        BaseModelError: the base cannot be loaded.
    """
    with needs(TASKS_EXTRA, "--tasks"):
        import lm_eval.models.huggingface  # noqa: F401  # pyright: ignore[reportMissingImports]
    if base.task != "causal-lm":
        raise ConfigError(f"{str(folder)!r} is a sequence classifier; lm-eval runs language models")
    check_weights(folder)
    with _local_only():
        manager = _manager(tasks, files)
        loaded = load_apart(base)
        tokenizer = tokenizer_of(folder, loaded)
        plain = _scores(loaded.model, loaded.tokenizer, tasks, manager, "base")
        adapted = _scores(load_adapter(loaded.model, folder), tokenizer, tasks, manager, "adapter")
    return adapted, plain


def _manager(tasks: Sequence[str], files: Path) -> Any:
    """What finds the tasks of a folder.

    Raises:
        ConfigError: there is no such folder, or it does not hold the tasks.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    if not files.is_dir():
        raise ConfigError(
            f"--include-path {str(files)!r} is no folder; give the one with the task files (YAML)"
        )
    manager = TaskManager(include_path=str(files), include_defaults=False)
    known = sorted(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise ConfigError(
            f"--tasks: {str(files)!r} has no task {unknown[0]!r}; {nearest('task', unknown[0], known)}"
        )
    return manager


def _scores(model: Any, tokenizer: Any, tasks: Sequence[str], manager: Any, name: str) -> Scores:
    """One task after another, so that it can be seen how far the work is."""
    scores: Scores = {}
    for place, task in enumerate(tasks):
        at(f"task of the {name}", place, len(tasks))
        scores |= _of_results(_results(model, tokenizer, task, manager))
    at(f"task of the {name}", len(tasks), len(tasks))
    return scores


def _results(model: Any, tokenizer: Any, task: str, manager: Any) -> Mapping[str, Mapping[str, Any]]:
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    passes = count(1)
    watched = model.register_forward_pre_hook(lambda *_: at(f"pass {next(passes)}"))
    try:
        with steady(model), quiet():
            wrapped = HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                max_length=positions_of(model),
                batch_size=REQUESTS_AT_ONCE,
            )
            results: Any = simple_evaluate(
                wrapped, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False
            )
    except Exception as error:  # whatever a task file provokes becomes one line
        cause = first_line(error)
    else:
        return results["results"]
    finally:
        watched.remove()
    raise ConfigError(f"task {task!r} failed in lm-eval ({cause}); its data must be files at hand")


def _without_bar(start: Callable[..., None]) -> Callable[..., None]:
    return lambda self, *values, **options: start(self, *values, **{**options, "disable": True})


@contextlib.contextmanager
def _local_only() -> Generator[None]:
    """Keep lm-eval and what it reads data with off the network, off the terminal, and from keeping copies."""
    import evaluate  # pyright: ignore[reportMissingImports]
    from datasets import config as of_datasets
    from lm_eval import evaluator  # pyright: ignore[reportMissingImports]
    from tqdm import tqdm

    log = logging.getLogger("lm_eval")
    with TemporaryDirectory(prefix="fedpeft-tasks-") as cache, contextlib.ExitStack() as changes, offline():
        for place, name, value in (
            (of_datasets, "HF_HUB_OFFLINE", True),
            (of_datasets, "HF_DATASETS_CACHE", Path(cache)),
            (evaluate.config, "HF_EVALUATE_OFFLINE", True),
            (tqdm, "__init__", _without_bar(tqdm.__init__)),
            (evaluator, "get_git_commit_hash", lambda: None),  # git would complain on the terminal
            (evaluator, "add_env_info", lambda results: None),  # the same, and a second for each task
        ):
            changes.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)
        changes.callback(log.setLevel, log.level)
        log.setLevel(logging.CRITICAL)
        yield


def _of_results(results: Mapping[str, Mapping[str, Any]]) -> Scores:
    """The values of lm-eval's results, without its names and standard errors."""
    return {
        task: {
            metric.removesuffix(",none"): float(value)
            for metric, value in values.items()
            if "," in metric and "_stderr," not in metric and isinstance(value, int | float)
        }
        for task, values in results.items()
    }

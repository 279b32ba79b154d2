"""Public data sets by name: the four tasks of FlowerTune, Flower's benchmark of federated fine-tuning.

They lie on the Hugging Face Hub under their owners' terms; nothing of them comes with the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError, first_line
from fedpeft.extras import needs
from fedpeft.runstore import write_json_lines

TEMPLATE = "{instruction}\n{input}\n### Response:\n{output}"
"""``data.template`` for the tables that `fetch` writes."""
_COLUMNS = ("instruction", "input", "output")


TASKS: Mapping[str, str] = {
    "flowertune/general-nlp": "vicgalle/alpaca-gpt4",
    "flowertune/finance": "FinGPT/fingpt-sentiment-train",
    "flowertune/medical": "medalpaca/medical_meadow_medical_flashcards",
    "flowertune/coding": "flwrlabs/code-alpaca-20k",
}
"""Ids on the Hugging Face Hub."""


def fetch(name: str, out: Path) -> int:
    """Write the training split of a task as JSONL with the columns instruction, input and output.

    Returns:
        The number of records.

    Raises:
        DataError: an unknown name, a file that exists, no way to the hub, or columns that are not there.
    """
    if name not in TASKS:
        raise DataError(f"no public task is called {name!r}; there are {', '.join(TASKS)}")
    if out.exists():
        raise DataError(f"{out} exists; give a new file")
    rows = _rows(TASKS[name])
    write_json_lines(out, rows)
    return len(rows)


def _rows(hub_id: str) -> list[dict[str, str]]:
    with needs("simulation", "a data set of the hub"):
        import datasets

    try:
        table: Any = datasets.load_dataset(hub_id, split="train")
    except Exception as error:  # the hub, a proxy and the builder fail in their own ways
        cause = first_line(error)
    else:
        if set(_COLUMNS[::2]) <= set(table.column_names):
            return [{column: row.get(column) or "" for column in _COLUMNS} for row in table]
        cause = f"it has the columns {', '.join(table.column_names)}, not instruction and output"
    raise DataError(f"the data set {hub_id} cannot be fetched: {cause}")

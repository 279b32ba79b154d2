"""The way of a record through a node, from the data file to the signed envelope, as a real round takes it.

A function has the record in its hands where an argument or its result is, or contains at top level, one of
its forms: the text, the row, the record, its tokens, the example or a batch; then a vector of the adapter's
size that training has made (gradient, trained values, change, update); then bytes of the envelope.
Those who only look at it (norms, taps, storing) lengthen no way. ``pytest -s`` prints the way.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedpeft.data import Batch, Example, Record
from fedpeft.exchange import Update
from fedpeft_clients.rounds.handlers import train
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.node_state import NodeState

ROOT = Path(__file__).parents[2]
SOURCES = tuple(f"{ROOT / name}/" for name in ("fedpeft", "kernels", "attacks", "clients"))
WORD = "quetzal"
"""Stands in the records and nowhere else."""
PRIVATE = {
    "unit": "record",
    "noise_multiplier": 1.0,
    "sampling_probability": 0.5,
    "budget": 30.0,
    "most_noise": 99.0,
}


class RecordWay:
    """Who hands a record on, to whom: pairs of function and file of its caller; ``with way: train(...)``."""

    def __init__(self, token, start):
        self.token, self.start, self.handed, self._bytes = token, start, set(), []

    def __enter__(self):
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def end(self, envelope):
        """Settle which bytes were of the envelope: its payload, its body or all of it."""
        payload = envelope[4:-64]
        self.handed |= {step for data, step in self._bytes if payload in data or data in payload}

    @property
    def files(self):
        return {name for (file, _), caller in self.handed for name in (file, caller) if name}

    @property
    def functions(self):
        """All that hand it back to a caller."""
        return {function for function, _ in self.handed}

    @property
    def returns(self):
        """Those of them whose caller is in another file: the way comes back to a file that it had left."""
        return {function for function, caller in self.handed if caller != function[0]}

    def _event(self, frame, event, value):
        code = frame.f_code
        if event != "return" or not code.co_filename.startswith(SOURCES) or code.co_name.startswith("<"):
            return
        sys.setprofile(None)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(SOURCES):
            caller = caller.f_back
        step = (_file(code), code.co_qualname), _file(caller.f_code) if caller else ""
        for part in _parts(value):
            if type(part) is bytes and WORD.encode() not in part:
                self._bytes += [(part, step)] if len(part) > 16 else []
            elif self._is_a_form(part):
                self.handed.add(step)
        sys.setprofile(self._event)

    def _is_a_form(self, part):
        if isinstance(part, str | bytes | dict):
            return WORD in str(part)
        if isinstance(part, list):
            return self.token in part if all(type(item) is int for item in part) else _is_example(part[0])
        if getattr(part, "shape", None) == self.start.shape:
            values = np.asarray(part)
            return values.dtype.kind == "f" and not np.array_equal(values, self.start)
        return isinstance(part, Record | Update | Batch) or _is_example(part)


def _file(code):
    return str(Path(code.co_filename).relative_to(ROOT))


def _parts(value):
    """The value and what it contains; of what is stored after a round, the bytes that leave."""
    if isinstance(value, NodeState):
        return [value.answer.envelope]
    return [value, *(value if isinstance(value, list | tuple) else ())]


def _is_example(value):
    return isinstance(value, Example)


@pytest.mark.parametrize(
    ("privacy", "files", "returns"), [({}, 13, 17), (PRIVATE, 16, 17)], ids=["plain", "dp-sgd"]
)
def test_a_record_takes_no_longer_way_to_the_envelope(organisation, privacy, files, returns):
    home, coordinator = organisation(
        records=[Record(f"{WORD} {n} is", "green") for n in range(12)], privacy=privacy
    )
    task, node = coordinator.first_task(), NodeContext(home)
    token = node.base.tokenizer(WORD, add_special_tokens=False)["input_ids"][0]
    way = RecordWay(token, node.initial())
    with way:
        _, envelope = train(node, task, b"")
    way.end(envelope)
    print(
        len(way.files),
        "files,",
        len(way.returns),
        "returns,",
        len(way.functions),
        "functions",
        *sorted(way.files),
    )
    for (file, name), caller in sorted(way.handed):
        print(f"{file}:{name} -> {caller or 'the app'}")
    assert {"fedpeft/data/readers.py", "fedpeft/data/tokens.py", "fedpeft/exchange/envelope.py"} <= way.files
    assert len(way.files) <= files
    assert len(way.returns) <= returns

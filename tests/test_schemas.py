"""The schemas in ``docs/schemas`` are those of the code; ``python tests/test_schemas.py`` writes them."""

import json
from pathlib import Path

import pytest

from fedpeft.config import Config
from fedpeft.runstore.summary import RunSummary
from fedpeft_attacks.results.findings import Report

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
SCHEMAS = {"config": Config, "run": RunSummary, "report": Report}


def _text(name):
    return json.dumps(SCHEMAS[name].model_json_schema(), indent=2) + "\n"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_the_codes(name):
    assert (FOLDER / f"{name}.schema.json").read_text() == _text(name)


if __name__ == "__main__":
    for name in SCHEMAS:
        (FOLDER / f"{name}.schema.json").write_text(_text(name))

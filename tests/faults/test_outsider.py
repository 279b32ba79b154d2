"""An outsider without a key: what is asked of ten minutes, here of two."""

import pytest
from outsider import CONNECTIONS, GARBAGE, soak

pytestmark = pytest.mark.faults


def test_an_outsider_costs_no_memory_no_log_and_little_time(tmp_path):
    found = soak(tmp_path, 2.0)
    print(found)
    assert found["connections"] >= CONNECTIONS and found["garbage_mb"] >= GARBAGE / 1e6
    assert found["worst_mib"] - found["idle_mib"] <= 64
    assert found["log_bytes"] == 0
    assert found["beside_s"] <= 2 * found["calm_s"]

from collections import Counter

import numpy as np
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.data import Record, label_set, partition, split
from fedpeft.errors import DataError
from fedpeft.rng import stream

RECORDS = [Record(f"p{i}", f"label{i % 4}", group=f"ward{i % 6}") for i in range(120)]
KINDS = ["iid", "dirichlet", "pathological", "natural"]


def _cfg(kind, **settings):
    return DataConfig(partition=kind, partition_column="ward" if kind == "natural" else None, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_lands_once_and_the_seed_decides(kind):
    parts = partition(RECORDS, _cfg(kind), 3, seed=1)
    assert len(parts) == 3 and all(parts)
    assert Counter(r.prompt for part in parts for r in part) == Counter(r.prompt for r in RECORDS)
    assert parts == partition(RECORDS, _cfg(kind), 3, seed=1)
    assert parts != partition(RECORDS, _cfg(kind), 3, seed=2)


def test_partition_leaves_numpys_global_generator_alone():
    before = np.random.get_state()[1].tolist()
    for kind in KINDS:
        partition(RECORDS, _cfg(kind), 3, seed=1)
    assert np.random.get_state()[1].tolist() == before


def test_pathological_and_natural_keep_what_they_promise():
    for part in partition(RECORDS, _cfg("pathological", classes_per_node=2), 4, seed=0):
        assert len({record.completion for record in part}) == 2
    parts = partition(RECORDS, _cfg("natural"), 3, seed=0)
    wards = [{record.group for record in part} for part in parts]
    assert [len(ward) for ward in wards] == [2, 2, 2]
    assert len(set.union(*wards)) == 6


def test_dirichlet_concentration_makes_skew():
    def skew(alpha):
        parts = partition(RECORDS * 5, _cfg("dirichlet", alpha=alpha), 4, seed=3)
        return np.mean([max(Counter(r.completion for r in part).values()) / len(part) for part in parts])

    assert skew(0.1) > skew(100.0) + 0.2


def test_clear_errors():
    cases = [
        (_cfg("iid"), 200, "120 records cannot be split into 200 nodes"),
        (DataConfig(partition="file"), 2, "one file per organisation"),
        (_cfg("natural"), 7, "6 ids cannot be split into 7 nodes"),
        (_cfg("pathological", classes_per_node=9), 2, "there are 4 classes"),
        (_cfg("dirichlet", alpha=1e-4), 100, "raise data.alpha or take fewer nodes"),
    ]
    for cfg, nodes, pattern in cases:
        with pytest.raises(DataError, match=pattern):
            partition(RECORDS, cfg, nodes, seed=0)
    with pytest.raises(DataError, match=r"needs data\.partition_column"):
        partition([Record("a", "b")] * 4, DataConfig(partition="natural"), 2, seed=0)


def test_split_is_a_partition_of_the_whole():
    train, validation, test = split(RECORDS, (0.8, 0.1, 0.1), stream(0, 0, "", "split"))
    assert (len(train), len(validation), len(test)) == (96, 12, 12)
    assert Counter(r.prompt for r in [*train, *validation, *test]) == Counter(r.prompt for r in RECORDS)
    assert split(RECORDS, (0.8,), stream(0, 0, "", "split"))[0] == train
    with pytest.raises(DataError, match="sum to at most 1"):
        split(RECORDS, (0.8, 0.3), stream(0, 0, "", "split"))


def test_label_set():
    assert label_set(RECORDS) == ["label0", "label1", "label2", "label3"]


def test_the_records_of_a_person_stay_in_one_part():
    records = [Record(str(place), "x", person=f"p{place % 30}") for place in range(120)]
    parts = split(records, (0.5, 0.3, 0.2), np.random.default_rng(0))
    persons = [{record.person for record in part} for part in parts]
    assert sum(map(len, parts)) == 120 and [len(group) for group in persons] == [15, 9, 6]
    assert not (persons[0] & persons[1] or persons[0] & persons[2] or persons[1] & persons[2])

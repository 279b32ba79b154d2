"""Held-out loss of many versions of one adapter: the base is loaded once, candidates are put in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.config.models import DataConfig
from fedpeft.errors import DataError
from fedpeft.evaluation.adapter_folder import Loaded, Subject, load_base_of
from fedpeft.packing.file_format import Claim
from fedpeft.packing.peft_folder import Tensors, digest_of
from fedpeft.runstore import RunStore

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation


@dataclass(frozen=True)
class AdapterEvaluator:
    """Held-out records, and a model into which adapters of one configuration are put in turn.

    Attributes:
        loaded: the peft model and the held-out examples.
        records_sha256: digest of the file of the records.
        before: the adapter as it is.
    """

    loaded: Loaded
    records_sha256: str
    before: Evaluation

    def measure(self, tensors: Tensors) -> Evaluation:
        """Held-out figures with these tensors."""
        _put(self.loaded.model, tensors)
        return self.loaded.figures()

    def claim(self, tensors: Tensors) -> Claim:
        """The measured losses, as a packed adapter carries them."""
        return Claim(
            records=len(self.loaded.examples),
            records_sha256=self.records_sha256,
            loss=self.before.loss,
            packed_loss=self.measure(tensors).loss,
        )


def evaluator_of_run(run: Path, folder: Path | None = None) -> AdapterEvaluator:
    """An evaluator on the test records of a finished run, with the run's own metrics.

    Args:
        run: the run directory.
        folder: the adapter to evaluate; None: the run's own.

    Raises:
        RunError: no run, or one without its test records.
        ConfigError: the run has not exported an adapter.
    """
    return _evaluator(Subject.of_run(run, folder), RunStore.open(run).test)


def evaluator_of_records(folder: Path, records: Path, base: str | None, data: DataConfig) -> AdapterEvaluator:
    """An evaluator for an adapter folder.

    Args:
        folder: the adapter folder.
        records: one file of held-out records, as the training data are given.
        base: model folder or id; None: the one that the adapter names.
        data: columns and template of the records.

    Raises:
        ConfigError: no adapter in the folder, or one that does not fit the base.
        DataError, BaseModelError: records or base cannot be read.
    """
    if not records.is_file():
        raise DataError(f"no records at {str(records)!r}; give one file")
    return _evaluator(Subject.of_folder(folder, records, base, data), records)


def _evaluator(subject: Subject, records: Path) -> AdapterEvaluator:
    loaded = load_base_of(subject).adapted()
    return AdapterEvaluator(loaded, digest_of(records), loaded.figures())


def _put(model: Any, tensors: Tensors) -> None:
    """Set an adapter's tensors by their names on disk, in place."""
    import torch
    from peft import set_peft_model_state_dict

    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
    set_peft_model_state_dict(model, state)

"""fedpeft: federated, privacy-audited fine-tuning of language model adapters.

The names of `__all__` are the public interface of the core and follow semantic versioning; `docs/api` has an
example of each. They are loaded when they are first used: importing this package imports neither torch nor
transformers.
"""

import os
from typing import TYPE_CHECKING

# Threads of libgomp (torch) and OpenBLAS (numpy) spin while they wait and starve every other process; both
# read this when they are loaded. numpy's matrices here are small: more threads make them slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from fedpeft import errors
from fedpeft._version import __version__
from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft.adapters import attach
    from fedpeft.aggregation.base import AggregationRule
    from fedpeft.bases import load_base
    from fedpeft.config import Config, load_config
    from fedpeft.data import Record, tokenise
    from fedpeft.exchange import (
        Codec,
        Context,
        ExchangePlan,
        Layout,
        Transform,
        Update,
        open_envelope,
        seal,
    )
    from fedpeft.plugins import (
        register_adapter_method,
        register_aggregation_rule,
        register_codec,
        register_reader,
    )
    from fedpeft.privacy import Budget, Ledger, PrivacyPlan
    from fedpeft.private import from_opacus
    from fedpeft.training import Extras, LocalPlan, per_example_loss, train_local
    from fedpeft.trust import Signer, Verifier

__all__ = [
    "AggregationRule",
    "Budget",
    "Codec",
    "Config",
    "Context",
    "ExchangePlan",
    "Extras",
    "Layout",
    "Ledger",
    "LocalPlan",
    "PrivacyPlan",
    "Record",
    "Signer",
    "Transform",
    "Update",
    "Verifier",
    "__version__",
    "attach",
    "errors",
    "from_opacus",
    "load_base",
    "load_config",
    "open_envelope",
    "per_example_loss",
    "register_adapter_method",
    "register_aggregation_rule",
    "register_codec",
    "register_reader",
    "seal",
    "tokenise",
    "train_local",
]

__getattr__ = lazy(
    __name__,
    {
        "attach": "adapters",
        "load_base": "bases",
        **dict.fromkeys(("Config", "load_config"), "config"),
        **dict.fromkeys(("Record", "tokenise"), "data"),
        **dict.fromkeys(("Codec", "Context", "ExchangePlan", "Layout", "Transform", "Update"), "exchange"),
        **dict.fromkeys(("open_envelope", "seal"), "exchange"),
        "AggregationRule": "aggregation.base",
        **dict.fromkeys(("register_adapter_method", "register_aggregation_rule"), "plugins"),
        **dict.fromkeys(("register_codec", "register_reader"), "plugins"),
        **dict.fromkeys(("Budget", "Ledger", "PrivacyPlan"), "privacy"),
        "from_opacus": "private",
        **dict.fromkeys(("Extras", "LocalPlan", "per_example_loss", "train_local"), "training"),
        **dict.fromkeys(("Signer", "Verifier"), "trust"),
    },
)


def __dir__() -> list[str]:
    return __all__

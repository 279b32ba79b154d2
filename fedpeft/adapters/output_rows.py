"""The frozen B of ``lora/frozen_b``: rows of the output embeddings, so that modules write towards tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.adapters.methods.base import Spec
    from fedpeft.bases.load import Base
    from fedpeft.exchange.layout import FloatVector


def output_rows(base: Base, spec: Spec) -> FloatVector | None:
    """Rows of the output embeddings as the columns of B, float32, shape ``(width, tokens)``, in order of ids.

    They are scaled by one power of two to a length of about 1: every party that holds the base has the same
    bits. None where ``adapter.output_tokens`` names no tokens: B then follows from the seed.

    Raises:
        ConfigError: the rank is not the number of tokens, the base has no output embeddings, or a module's
            output is not as wide as they are.
    """
    if not (ids := spec.parts.outputs):
        return None
    head = base.model.get_output_embeddings()
    if head is None:
        raise ConfigError(
            f"adapter.output_tokens: {base.name!r} has no output embeddings; leave it out, or take "
            "base.task = 'causal-lm'"
        )
    if spec.rank != len(ids):
        raise ConfigError(
            f"adapter.output_tokens names {len(ids)} tokens, and adapter.rank is {spec.rank}: "
            f"set adapter.rank = {len(ids)}"
        )
    rows = head.weight[list(ids)].detach().float().cpu()
    wrong = next((name for name, (out, _) in spec.shapes if out != rows.shape[1]), None)
    if wrong is not None:
        raise ConfigError(
            f"adapter.output_tokens: {wrong!r} writes nothing of the width of the embeddings "
            f"({rows.shape[1]}); name modules that do in adapter.target_modules, such as ['down_proj']"
        )
    length = float(rows.double().norm(dim=1).mean())
    return (rows.T * 2.0 ** -round(math.log2(length))).contiguous().numpy()

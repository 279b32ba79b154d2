"""What an honest-but-curious member of the federation knows, put together from the base and the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from fedpeft.adapters.trained_parts import REVEALED
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.tokens.first_layer import FirstLayer, first_layer
from fedpeft_attacks.tokens.language_prior import token_prior
from fedpeft_attacks.views import Knowledge, Start

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.bases import Base
    from fedpeft.config.models import DataConfig


def vocabulary_of(base: Base) -> int:
    """Number of tokens that the base embeds."""
    return int(base.model.get_input_embeddings().weight.shape[0])


def special_tokens(base: Base) -> frozenset[int]:
    """Ids of tokens that frame every text and are no secret."""
    return frozenset(int(token) for token in base.tokenizer.all_special_ids)


def prior_of(base: Base) -> NDArray[np.float64]:
    """The base's own language prior; the adapter at hand must change nothing or be absent."""
    return token_prior(base.model, _start(base), vocabulary_of(base))


def _start(base: Base) -> int:
    tokens = (base.tokenizer.bos_token_id, base.tokenizer.eos_token_id, 0)
    return next(int(token) for token in tokens if token is not None)


_LAYERS: WeakKeyDictionary[Any, dict[tuple[str, ...], FirstLayer]] = WeakKeyDictionary()
"""First layers by the base's model and the adapted modules: nothing that is adapted lies before them."""


def layer_of(attached: Attached) -> FirstLayer:
    """The first layer that an adapter touches, which takes a pass over the whole vocabulary; once a base."""
    base, modules = attached.base, tuple(attached.spec.targets)
    if attached.spec.parts.settings:  # such as token embeddings that are trained
        return first_layer(attached.model, modules, vocabulary_of(base), _start(base))
    layers = _LAYERS.setdefault(base.model, {})
    if modules not in layers:
        layers[modules] = first_layer(attached.model, modules, vocabulary_of(base), _start(base))
    return layers[modules]


def knowledge_of(
    attached: Attached, prior: NDArray[np.float64], place: tuple[str, int], lr: float
) -> Knowledge:
    """What is known of a node's round.

    Args:
        attached: the run's adapter, as that node has it.
        prior: the base's language prior, shape ``(tokens,)``.
        place: the node and the 1-based round.
        lr: local learning rate of that round.
    """
    layer = layer_of(attached)
    return Knowledge(
        inputs=layer.inputs,
        readers=layer.readers,
        projections=_projections(attached, place),
        prior=prior,
        special=special_tokens(attached.base),
        lr=lr,
        rows=attached.method.token_rows,
        approximation=layer.approximation,
        placed=layer.placed,
        unread=_unread(attached),
    )


def knowledge_of_gradient(attached: Attached, data: DataConfig | None = None) -> Knowledge:
    """What is known of a gradient that was taken at the adapter's present values.

    Args:
        attached: the adapter on its base.
        data: the settings of the data behind it; None: every token bears the same loss.
    """
    base, layer = attached.base, layer_of(attached)
    with attached.model.disable_adapter():
        prior = prior_of(base)
    tensors = {name: _array(tensor) for name, tensor in (attached.frozen | attached.parameters).items()}
    runs = base.task == "causal-lm" and attached.aggregator is None
    return Knowledge(
        inputs=layer.inputs,
        readers=layer.readers,
        projections=_projecting(attached, tensors),
        prior=prior,
        special=special_tokens(base),
        rows=attached.method.token_rows,
        start=Start(attached, attached.get()) if runs else None,
        approximation=layer.approximation,
        placed=layer.placed,
        unread=_unread(attached),
        frame=None if data is None else RecordFrame.of(base.tokenizer, data),
    )


READ_AS_LABELS = frozenset(("output_tokens",))
"""Settings whose updates show answers alone: `fedpeft_attacks.label_inference` reads those."""


def _unread(attached: Attached) -> str:
    """What parts that settings have added show, and attacks on tokens do not look at."""
    shown = " and ".join(
        REVEALED[setting] for setting in attached.spec.parts.settings if setting not in READ_AS_LABELS
    )
    return f"{shown}, which no attack here reads" if shown else ""


def _projections(attached: Attached, place: tuple[str, int]) -> Mapping[str, NDArray[np.floating]]:
    """Known input projections by module: agreed ones, fresh ones, and in round 1 the agreed start."""
    node, round_ = place
    frozen = {name: _array(tensor) for name, tensor in attached.frozen.items()}
    if attached.aggregator is not None and (attached.method.renews_factors or round_ == 1):
        start = attached.aggregator.start(attached.aggregator.initial(), round_, node)
        return {module: a for module, (a, _) in start.items()}
    if round_ == 1:
        frozen |= attached.layout.split(attached.initial())
    return _projecting(attached, frozen)


def _projecting(attached: Attached, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """The tensors that project what a module reads, by module."""
    rows = attached.method.token_rows
    if rows is None:
        return {}
    places = ((rows.place(name), value) for name, value in tensors.items())
    return {place[0]: value for place, value in places if place is not None and place[1] == rows.projection}


def _array(tensor: Any) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()

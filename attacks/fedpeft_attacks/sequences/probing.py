"""What an attacker runs on the base that it holds: logits, slopes along a direction, gradients, inputs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.adapters.attach import linear_modules_under
from fedpeft.data import Example, collate
from fedpeft.exchange.layout import FloatVector
from fedpeft.rng import torch_stream
from fedpeft.training import per_example_loss
from fedpeft.training.loss import PROBE_TOLERANCE, logits_at, token_logits
from fedpeft.training.modes import steady
from fedpeft_attacks.record_frame import RecordFrame

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft_attacks.views import Start

Records = Sequence[Sequence[int]]
Inputs = dict[str, torch.Tensor]

_STEP = 0.01
_SAME = 1e-5


class _Reached(Exception):
    """Ends a pass as soon as all that is asked for was read."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Partial records of one length as the model has read them.

    Attributes:
        logits: next-token logits after each, float32, shape ``(B, V)``.
        inputs: what each module read along them, shape ``(B, T, I)``.
        memory: keys and values; reading on uses them up.
        length: tokens of each.
    """

    logits: torch.Tensor
    inputs: Inputs
    memory: Any
    length: int


@dataclass(frozen=True, eq=False)
class Probe:
    """Base and adapter as they were before the update.

    Attributes:
        attached: the adapter, with the values of `state` except inside a call.
        state: trainable values before the update, float32, shape ``(layout.size,)``.
        frame: how records begin and end and how their tokens are weighted.
    """

    attached: Attached = field(repr=False)
    state: FloatVector = field(repr=False)
    frame: RecordFrame

    @classmethod
    def of(cls, start: Start, frame: RecordFrame | None = None) -> Probe:
        """Load the values and keep them; without a frame records bear the base's start and end token."""
        attached = start.ready()
        return cls(attached, start.state, frame or _framed_by(attached.base.tokenizer))

    @cached_property
    def begin(self) -> int:
        """Id of the token that begins a text of the base."""
        return _framed_by(self.attached.base.tokenizer).begin[0]

    @property
    def end(self) -> int | None:
        """Id of the token that ends a record."""
        return self.frame.end

    @cached_property
    def head_VD(self) -> torch.Tensor:
        """Weights of the language model head, float32."""
        return self.attached.model.get_output_embeddings().weight.detach().float()

    @cached_property
    def squares_V(self) -> torch.Tensor:
        """Squared length of each row of the head."""
        return torch.einsum("vd,vd->v", self.head_VD, self.head_VD)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits at all positions, float32, shape ``(B, T, V)``."""
        with torch.no_grad(), steady(self.attached.model):
            return self.attached.model(input_ids=ids, use_cache=False).logits.float()

    def last_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits at the last position alone, float32, shape ``(B, V)``."""
        with torch.no_grad(), steady(self.attached.model):
            return token_logits(self.attached.model, ids, *_ends(ids)).float()

    def slopes(self, direction: FloatVector, logits: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Derivative of logits along a direction of the trainable values, in the shape of the logits.

        By central differences, so that any model serves; a zero direction has no slope.

        Args:
            direction: shape ``(layout.size,)``.
            logits: computes them at the values that are loaded.
        """
        length = float(np.linalg.norm(direction))
        if length == 0.0:
            return torch.zeros_like(logits())
        step = _STEP * max(float(np.linalg.norm(self.state)), 1.0)
        move = np.asarray(direction * (step / length), np.float32)
        try:
            self.attached.load(self.state + move)
            above = logits()
            self.attached.load(self.state - move)
            below = logits()
        finally:
            self.attached.load(self.state)
        return (above - below) * (length / (2 * step))

    def gradient(self, records: Records, weights: Sequence[Sequence[float]] | None = None) -> FloatVector:
        """Gradient of the mean loss of records, each a mean over its tokens with the weights of the frame.

        Args:
            records: token ids.
            weights: signed weight of each token's loss, instead of the mean.
        """
        attached = self.attached
        examples = [Example(np.asarray(ids, np.int64), self.frame.weights(ids)) for ids in records]
        batch = collate(examples, attached.base.pad_id, attached.base.device)
        batch.targets.clamp_(min=0)
        with torch.enable_grad(), steady(attached.model):
            if weights is None:
                loss = per_example_loss(attached.model, batch, "causal-lm").mean()
            else:
                loss = (self._losses(batch.ids) * _padded(weights, batch.ids)).sum()
            tensors = torch.autograd.grad(loss, list(attached.parameters.values()))
        return attached.layout.flatten(dict(zip(attached.parameters, tensors, strict=True)))

    def _losses(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.attached.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        return losses.reshape(len(ids), -1)

    def inputs(self, ids: torch.Tensor, modules: Sequence[str]) -> tuple[torch.Tensor, Inputs]:
        """Logits of the last position, and what each module reads at all positions, ``(B, T, I)``."""
        with self._listening(modules) as seen:
            return self.logits(ids)[:, -1], seen

    def read(self, ids: torch.Tensor, modules: Sequence[str]) -> Prefixes:
        """Read partial records of one length, shape ``(B, T)``, and what modules read along them."""
        model = self.attached.model
        with (
            torch.no_grad(),
            steady(model),
            self._listening(modules) as seen,
            logits_at(model, *_ends(ids)) as chosen,
        ):
            output = model(input_ids=ids, use_cache=True)
        return Prefixes(chosen(output.logits).float(), seen, output.past_key_values, ids.shape[1])

    def ahead(self, read: Prefixes, proposals_BP: torch.Tensor, modules: Sequence[str]) -> Inputs:
        """What each module reads at each proposal right after its prefix, shape ``(B, P, I)``."""
        return (self._side_by_side if self.takes_masks else self._one_by_one)(read, proposals_BP, modules)

    def next_inputs(self, ids_BT: torch.Tensor, proposals_BP: torch.Tensor, modules: Sequence[str]) -> Inputs:
        """What `read` and `ahead` say of proposals, by a pass that goes no further than these modules.

        Args:
            ids_BT: prefixes of one length, which may be 0.
            proposals_BP: tokens that may follow.
            modules: at least one.

        Returns:
            Shape ``(B, P, I)`` by module.
        """
        (rows, count), length = proposals_BP.shape, ids_BT.shape[1]
        if count == 1 or self.takes_masks:
            seen = self._as_far_as(
                torch.cat([ids_BT, proposals_BP], dim=1), modules, **self._apart(length, count)
            )
            return {name: value[:, length:] for name, value in seen.items()}
        longer = torch.cat([ids_BT.repeat_interleave(count, dim=0), proposals_BP.reshape(-1, 1)], dim=1)
        seen = self._as_far_as(longer, modules)
        return {name: value[:, -1].reshape(rows, count, -1) for name, value in seen.items()}

    def _apart(self, length: int, count: int) -> dict[str, torch.Tensor]:
        """Mask and positions of a prefix and its proposals, each of which sees the prefix and itself."""
        if count == 1:
            return {}
        dtype = self.attached.model.get_input_embeddings().weight.dtype
        sees = torch.ones(length + count, length + count, dtype=torch.bool).tril()
        sees[length:, length:] = torch.eye(count, dtype=torch.bool)
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
        places = torch.cat([torch.arange(length), torch.full((count,), length)])
        return {"attention_mask": mask[None, None], "position_ids": places[None]}

    def _as_far_as(self, ids: torch.Tensor, modules: Sequence[str], **where: torch.Tensor) -> Inputs:
        """What modules read in a pass that ends with the last of them."""
        model = self.attached.model
        with torch.no_grad(), steady(model), self._listening(modules, stops=True) as seen, suppress(_Reached):
            model(input_ids=ids, use_cache=False, **where)
        return seen

    @cached_property
    def takes_masks(self) -> bool:
        """Whether proposals may share their prefix's memory, which a mask of their own takes; tried once.

        On made-up tokens: some models ignore such a mask or refuse it.
        """
        ids, proposals = (
            torch.tensor([[self.begin, 1, 2], [self.begin, 3, 4]]),
            torch.tensor([[5, 6], [7, 8]]),
        )
        names = self.attached.spec.targets
        plain = self._one_by_one(self.read(ids, []), proposals, names)
        try:
            shared = self._side_by_side(self.read(ids, []), proposals, names)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        pairs = [(shared[name], value) for name, value in plain.items()]
        return all(bool((a - b).abs().max() <= PROBE_TOLERANCE * b.abs().max()) for a, b in pairs)

    def _side_by_side(self, read: Prefixes, proposals_BP: torch.Tensor, modules: Sequence[str]) -> Inputs:
        """All proposals of a prefix in one row; each sees the prefix and itself."""
        count, length = proposals_BP.shape[1], read.length
        dtype = self.attached.model.get_input_embeddings().weight.dtype
        others = torch.full((count, count), torch.finfo(dtype).min, dtype=dtype).fill_diagonal_(0.0)
        mask = torch.cat([torch.zeros(count, length, dtype=dtype), others], dim=1)[None, None]
        places = torch.full_like(proposals_BP, length)
        return self._onward(read.memory, proposals_BP, modules, attention_mask=mask, position_ids=places)

    def _one_by_one(self, read: Prefixes, proposals_BP: torch.Tensor, modules: Sequence[str]) -> Inputs:
        """Each proposal in a row of its own, with a copy of its prefix's memory."""
        rows, count = proposals_BP.shape
        read.memory.batch_repeat_interleave(count)
        seen = self._onward(read.memory, proposals_BP.reshape(-1, 1), modules)
        return {name: value.reshape(rows, count, -1) for name, value in seen.items()}

    def _onward(
        self, memory: Any, ids: torch.Tensor, modules: Sequence[str], **where: torch.Tensor
    ) -> Inputs:
        """What modules read in a pass after a memory; nobody asks for its logits."""
        model, first = self.attached.model, torch.zeros(1, dtype=torch.int64)
        with torch.no_grad(), steady(model), logits_at(model, first, first), self._listening(modules) as seen:
            model(input_ids=ids, past_key_values=memory, use_cache=True, **where)
        return seen

    @contextmanager
    def _listening(self, modules: Sequence[str], stops: bool = False) -> Generator[Inputs]:
        """Collects what modules read in a pass, which may end with the last of them."""
        adapted, seen = linear_modules_under(self.attached.model), Inputs()

        def keep(name: str) -> Any:
            def hook(_: Any, inputs: tuple[Any, ...]) -> None:
                seen[name] = inputs[0].detach().float()
                if stops and len(seen) == len(modules):
                    raise _Reached

            return hook

        handles = [adapted[name].register_forward_pre_hook(keep(name)) for name in modules]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @cached_property
    def groups(self) -> list[list[str]]:
        """Adapted modules by what they read, in the order in which a pass reaches them."""
        ids = torch.tensor([[self.begin, 1, 2, 3]])
        _, seen = self.inputs(ids, self.attached.spec.targets)
        groups: list[list[str]] = []
        for name, value in seen.items():
            like = next((group for group in groups if _equal(seen[group[0]], value)), None)
            groups.append([name]) if like is None else like.append(name)
        return groups

    def texts(self, count: int, length: int) -> list[list[int]]:
        """Texts sampled from the base, each up to its end token; reproducible."""
        draws = torch_stream(0, 0, "", "audit-null-texts")
        rows, memory = torch.full((count, 1), self.begin), None
        with torch.no_grad(), steady(self.attached.model):
            for _ in range(length):
                out = self.attached.model(input_ids=rows[:, -1:], past_key_values=memory, use_cache=True)
                shares, memory = out.logits[:, -1].float().softmax(dim=-1), out.past_key_values
                rows = torch.cat([rows, torch.multinomial(shares, 1, generator=draws)], dim=1)
        return [self.cut(row) for row in rows.tolist()]

    def cut(self, row: Sequence[int]) -> list[int]:
        """A record up to its first end token, which stays."""
        ends = [place for place, token in enumerate(row) if place and token == self.end]
        return list(row[: ends[0] + 1]) if ends else list(row)


def whole_example(ids: Sequence[int]) -> Example:
    """A record whose every token but the first is a target."""
    weights = np.ones(len(ids), np.float32)
    weights[:1] = 0.0
    return Example(np.asarray(ids, np.int64), weights)


def _framed_by(tokenizer: Any) -> RecordFrame:
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = next(token for token in (begin, end, 0) if token is not None)
    return RecordFrame((int(first),), end=None if end is None else int(end))


def _ends(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the last positions."""
    return torch.arange(len(ids)), torch.full((len(ids),), ids.shape[1] - 1)


def _padded(weights: Sequence[Sequence[float]], ids: torch.Tensor) -> torch.Tensor:
    """Weights of targets, zero where there is none, shape ``(B, T - 1)``."""
    table: NDArray[np.float32] = np.zeros((ids.shape[0], ids.shape[1] - 1), np.float32)
    for row, values in enumerate(weights):
        table[row, : len(values)] = values
    return torch.from_numpy(table)


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=_SAME)

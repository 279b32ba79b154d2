"""Putting an adapter on the shared base, and taking it off without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft.adapters.methods.base import AdapterMethod, Spec, method_of, rank_of, scaling_of
from fedpeft.aggregation.lora_factors import FactorAggregator, FactorState
from fedpeft.bases.load import Base
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import ConfigError, first_line
from fedpeft.exchange.layout import FloatVector, Layout

if TYPE_CHECKING:
    import torch

_ADAPTER, _GLOBAL = "default", "global"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Attached:
    """An adapter on the shared base.

    Attributes:
        base: the base, whose own weights never change.
        model: the ``peft.PeftModel`` around it.
        method: the adapter method.
        spec: the settings, the rank and the adapted modules.
        seed: seed of the agreed initial values.
        parameters: the trainable parameters by exchanged name, in layout order.
        frozen: the adapter's tensors that are agreed, not trained (A under frozen_a and miss, B under
            frozen_b).
        starts: agreed first values of what is trained beside the method's own tensors, by exchanged name.
        fixed: value of each frozen tensor where the base decides it.
    """

    base: Base
    model: Any = field(repr=False)
    method: AdapterMethod
    spec: Spec
    seed: int
    parameters: dict[str, torch.nn.Parameter] = field(repr=False)
    frozen: dict[str, torch.nn.Parameter] = field(repr=False)
    starts: dict[str, FloatVector] = field(default_factory=dict[str, FloatVector], repr=False)
    fixed: FloatVector | None = field(default=None, repr=False)

    @property
    def config(self) -> AdapterConfig:
        """The settings it was built from."""
        return self.spec.config

    @property
    def rank(self) -> int:
        """Rank of this adapter."""
        return self.spec.rank

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes of the exchanged tensors."""
        return Layout.of(self.parameters)

    @cached_property
    def aggregator(self) -> FactorAggregator | None:
        """How factors are aggregated (stack, reproject); None where updates are averaged."""
        if self.method.aggregation == "mean":
            return None
        ranks = tuple(sorted(self.config.ranks.items()))
        scaling = scaling_of(self.config)
        return FactorAggregator(
            self.method.aggregation, self.seed, self.spec.shapes, self.config.rank, ranks, scaling
        )

    def get(self) -> FloatVector:
        """A copy of the trainable values, float32, shape ``(layout.size,)``."""
        return self.flat().cpu().numpy()

    def flat(self) -> torch.Tensor:
        """A copy of the trainable values on the model's device, float32, shape ``(layout.size,)``."""
        import torch

        return torch.cat([tensor.detach().float().reshape(-1) for tensor in self.parameters.values()])

    def moved_from(self, start: FloatVector) -> torch.Tensor:
        """The trainable values less these, on the device, float32, shape ``(layout.size,)``."""
        import torch

        values = self.flat()
        return values - torch.from_numpy(start).to(values.device)

    def load(self, values: FloatVector) -> None:
        """Set the trainable values; nothing else of the model changes.

        Raises:
            ExchangeError: the vector does not fit the layout.
        """
        _copy(self.parameters, self.layout.split(np.ascontiguousarray(values, dtype=np.float32)))

    def initial(self) -> FloatVector:
        """The agreed values before round 1, float32, shape ``(layout.size,)``."""
        pairs = zip(self.layout.names, self.layout.shapes, strict=True)
        values = {
            name: self.method.initial(name, shape, self.seed)
            for name, shape in pairs
            if name not in self.starts
        }
        return self.layout.flatten({**values, **self.starts})

    def reset(self) -> None:
        """Set the adapter, frozen tensors included, to the agreed values before round 1."""
        self.load(self.initial())
        _copy(self.frozen, {name: self._fixed(name, tensor) for name, tensor in self.frozen.items()})
        if self.method.renews_factors:
            _set_global(self, None)

    def _fixed(self, name: str, tensor: torch.nn.Parameter) -> FloatVector:
        if self.fixed is not None:
            return self.fixed
        return self.method.initial(name, tuple(tensor.shape), self.seed)

    def begin(self, state: FloatVector | FactorState, round: int = 0, node: str = "") -> FloatVector:
        """Set the model to what a node starts a round from, and return the trainables' values.

        With the default round and node the model computes exactly the federation's function: that is how
        a state is evaluated.
        """
        if isinstance(state, FactorState):
            aggregator = self.aggregator
            if aggregator is None:
                raise TypeError(f"{self.method.name} has no factors")
            if self.method.renews_factors:
                _set_global(self, state)
            state = aggregator.start_values(state, round, node)
        self.load(state)
        return self.get()


_current: list[Attached] = []


def attach(base: Base, cfg: AdapterConfig, seed: int, node: str | None = None) -> Attached:
    """Put an adapter on the base, its values reset to the agreed initial ones.

    One adapter is attached per process: the same base, settings and rank give the same object again;
    anything else first takes the old adapter off. The base is neither copied nor re-loaded, and torch's
    global generator is left as it was.

    Raises:
        ConfigError: settings that do not fit the base or each other; the base is then as it was.
    """
    method, rank = method_of(cfg), rank_of(cfg, node)
    if _current:
        current = _current[0]
        if current.base.model is base.model and (current.config, current.rank, current.seed) == (
            cfg,
            rank,
            seed,
        ):
            current.reset()
            return current
    detach()
    attached = _wrap(base, method, Spec.of(base, cfg, rank), seed)
    attached.reset()
    _current.append(attached)
    return attached


def detach() -> None:
    """Take the attached adapter off; the base is then exactly the model that was loaded."""
    if not _current:
        return
    _unwrap(_current.pop().base.model)


def _unwrap(model: Any) -> None:
    """Put every module of a base back in place of what peft has wrapped around it."""
    for name, wrapper in _wrappers(model).items():
        parent, _, child = name.rpartition(".")
        is_module = hasattr(wrapper, "original_module")
        inner = wrapper.original_module if is_module else wrapper.get_base_layer()
        setattr(model.get_submodule(parent), child, inner)
    if hasattr(model, "peft_config"):
        del model.peft_config
    if hasattr(model, "disable_input_require_grads"):
        model.disable_input_require_grads()  # peft sets them where activations are recomputed


def _wrappers(model: Any) -> dict[str, Any]:
    """What peft has put around modules, by their names; not what stands in such a wrapper."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrappers: dict[str, Any] = {}
    outer = ""
    for name, module in model.named_modules():  # parents come before what is in them
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not (
            outer and name.startswith(outer)
        ):
            wrappers[name], outer = module, f"{name}."
    return wrappers


def linear_modules_under(model: Any) -> dict[str, Any]:
    """The adapted linear modules of a peft model by their name in the base."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {
        name.removeprefix(_PREFIX): module
        for name, module in layers
        if isinstance(module.get_base_layer(), torch.nn.Linear | Conv1D)
    }


def exchanged_name(name: str) -> str:
    """The exchanged name of a peft parameter, as in an adapter folder without peft's prefix.

    >>> exchanged_name("base_model.model.model.layers.0.q_proj.lora_B.default.weight")
    'model.layers.0.q_proj.lora_B.weight'
    >>> exchanged_name("base_model.model.score.modules_to_save.default.weight")
    'score.weight'
    """
    short = name.removeprefix(_PREFIX).replace(f".modules_to_save.{_ADAPTER}.", ".")
    return short.replace(f".{_ADAPTER}.", ".").removesuffix(f".{_ADAPTER}")


def adapter_tensors(model: Any, spec: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that peft has added to a base, by exchanged name: the trained ones, and the others."""
    trained: dict[str, Any] = {}
    others: dict[str, Any] = {}
    endings = method_of(spec.config).trained
    for name, parameter in model.named_parameters():
        short = exchanged_name(name)
        if short != name.removeprefix(_PREFIX):
            (trained if short.endswith(endings) or spec.parts.trains(short) else others)[short] = parameter
    return {name: trained[name] for name in sorted(trained)}, others


def _wrap(base: Base, method: AdapterMethod, spec: Spec, seed: int) -> Attached:
    from peft import PeftModel

    config, fixed = spec.parts.configure(method.build(spec)), method.fixed(base, spec)
    try:
        with _untouched_generator(base), warnings.catch_warnings():
            # peft asks transformers whether checkpointing is on by a name that transformers deprecates
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            model = PeftModel(base.model, config, adapter_name=_ADAPTER)
    except (ValueError, TypeError, RuntimeError) as error:
        _unwrap(base.model)  # peft may have wrapped some modules before it came to one that it refuses
        cause = first_line(error)
        raise ConfigError(f"peft puts no {method.name} on {base.name!r} ({cause}); change adapter") from error
    if wrong := sorted(_wrappers(base.model).keys() ^ {*spec.targets, *spec.parts.modules}):
        _unwrap(base.model)
        raise ConfigError(f"peft does not adapt {base.name!r} as asked: {wrong[0]!r}; leave that out")
    _in_float32(model, spec)
    model.requires_grad_(False)
    trained, frozen = adapter_tensors(model, spec)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    starts = {name: spec.parts.start(base, name) for name in trained if spec.parts.trains(name)}
    return Attached(base, model, method, spec, seed, trained, frozen, starts, fixed)


def _in_float32(model: Any, spec: Spec) -> None:
    """Let modules that are trained whole compute in float32, as the tensors of an adapter do."""
    import torch

    def convert(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part.float() if isinstance(part, torch.Tensor) else part for part in inputs)

    for name in spec.parts.heads:
        copy = model.get_submodule(f"{_PREFIX}{name}.modules_to_save.{_ADAPTER}")
        if any(parameter.dtype != torch.float32 for parameter in copy.parameters()):
            copy.float().register_forward_pre_hook(convert)


def _set_global(attached: Attached, state: FactorState | None) -> None:
    """Hold the federation's factors as a second, frozen adapter beside the trainable one."""
    from peft import LoraConfig

    with _untouched_generator(attached.base):
        for name, layer in linear_modules_under(attached.model).items():
            if _GLOBAL in layer.lora_A:
                layer.set_adapter([_ADAPTER])
                layer.delete_adapter(_GLOBAL)
            if state is None or not state.factors[name][0].shape[0]:
                continue
            a, b = state.factors[name]
            layer.update_layer(_GLOBAL, a.shape[0], lora_alpha=a.shape[0], config=LoraConfig())
            layer.set_adapter([_ADAPTER, _GLOBAL])
            halves = (layer.lora_A[_GLOBAL].float(), layer.lora_B[_GLOBAL].float())
            tensors = {"a": halves[0].weight, "b": halves[1].weight}
            _copy(tensors, {"a": a, "b": b})
            for tensor in tensors.values():
                tensor.requires_grad_(False)


def _copy(parameters: dict[str, Any], values: dict[str, FloatVector]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(values[name]))
            parameter.grad = None


@contextmanager
def _untouched_generator(base: Base) -> Generator[None]:
    """Restore torch's global generators afterwards: peft draws from them when it builds layers."""
    import torch

    device = torch.device(base.device)
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield

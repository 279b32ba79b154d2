"""Every setting of a run, as frozen models; the field's description is its documentation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedpeft.config.privacy_section import PrivacyConfig
from fedpeft.config.section import Section
from fedpeft.config.template import EncodingName, TemplateText
from fedpeft.plugins import (
    ADAPTER_METHODS,
    ATTACKS,
    AUDIT_PARTS,
    AggregationName,
    AttackName,
    CodecName,
    MethodName,
    ReaderName,
    RuleName,
    modes_of,
)
from fedpeft.registry import nearest

EMBEDDED, ALL_LINEAR = "embedded", "all-linear"
"""The base and data that fedpeft brings; in place of module names every linear module, as in peft."""
Quantisation = Literal["none", "int8", "nf4"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Task = Literal["causal-lm", "sequence-classification"]
Profile = Literal["none", "drop-in", "thin", "private"]
Selection = Literal["seeded", "poisson", "cyclic"]
Engine = Literal["auto", "batched", "loop", "opacus"]
Baseline = Literal["local_only", "centralised", "private"]


class BaseConfig(Section):
    """The frozen pretrained model."""

    model: str = Field(default=EMBEDDED, description="'embedded', a model folder, or a Hugging Face id")
    revision: str | None = Field(default=None, description="revision of a Hugging Face id")
    sha256: str | None = Field(default=None, description="refuse a base whose content hash differs")
    task: Task = Field(default="causal-lm", description="head of the model")
    quantisation: Quantisation = Field(default="none", description="weights of the linear layers")
    dtype: DType = Field(default="auto", description="compute type; auto: float32 on CPU, bfloat16 on GPU")
    device: str = Field(default="auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    threads: int = Field(
        default=0, ge=0, le=1024, description="CPU threads of one process; 0: leave it to torch"
    )
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")


class AdapterConfig(Section):
    """The trainable part and how it is aggregated."""

    method: MethodName = Field(default="lora", description="adapter method")
    aggregation: AggregationName = Field(
        default="frozen_a", description="mode of a method that has several: what is sent, how it is averaged"
    )
    rank: int = Field(default=16, ge=1, description="rank (lora, miss)")
    ranks: dict[str, int] = Field(default_factory=dict, description="rank per node; stack, reproject only")
    alpha: float | None = Field(default=None, gt=0, description="lora scaling numerator; default 2 * rank")
    target_modules: tuple[str, ...] = Field(
        default=(),
        description="module name suffixes, or 'all-linear'; empty: the method's own, for lora and miss all "
        "linear modules that text goes through",
    )
    skip_layers: tuple[int, ...] = Field(
        default=(0,),
        description="layers (of the text stack) without adapter; token extraction reads layer 0",
    )
    experts: bool = Field(default=False, description="adapt fused experts too, each with its rank")
    train_head: bool = Field(default=False, description="train the head of a classifier too: it shows labels")
    trainable_tokens: tuple[str | int, ...] = Field(
        default=(), description="tokens, by text or id, whose embeddings are trained too: it shows their use"
    )
    output_tokens: tuple[str | int, ...] = Field(
        default=(), description="tokens, by text or id, whose output embeddings are the frozen B (frozen_b)"
    )

    @model_validator(mode="after")
    def _mode_of_the_method(self) -> AdapterConfig:
        modes = modes_of(self.method)
        if modes and self.aggregation not in modes:
            hint = nearest(f"aggregation of {self.method!r}", self.aggregation, modes)
            raise ValueError(f"aggregation {self.aggregation!r} is not one of {self.method!r}; {hint}")
        return self

    @property
    def key(self) -> str:
        """Name of the method among `fedpeft.plugins.ADAPTER_METHODS`, with its mode where it has several."""
        mode = f"{self.method}/{self.aggregation}"
        return mode if mode in ADAPTER_METHODS else self.method


class DataConfig(Section):
    """Records of the organisations."""

    source: str = Field(
        default=EMBEDDED, description="'embedded', a file, a folder of files, or a datasets folder"
    )
    test: str | None = Field(
        default=None, description="global test records; default: held out from each organisation"
    )
    format: ReaderName = Field(default="auto", description="file format")
    encoding: EncodingName = Field(
        default="utf-8", description="encoding of text files, as Python names it: 'cp1252', 'utf-16', 'gbk'"
    )
    prompt: str = Field(default="prompt", description="column with the prompt")
    completion: str = Field(default="completion", description="column with the completion, or the label")
    messages: str | None = Field(
        default=None,
        description="column with chat messages, OpenAI's or ShareGPT's; 'a+b': two columns, as TRL has them; "
        "uses the chat template",
    )
    assistant_turns: Literal["last", "all"] = Field(
        default="last", description="chats: loss on the last turn of the assistant, or on all of its turns"
    )
    template: TemplateText = Field(
        default="{prompt}{completion}",
        description="how columns are joined: {prompt}, {completion} or any column; the last is the answer",
    )
    person: str | None = Field(
        default=None, description="column that says whose record it is; privacy.unit = 'person' needs it"
    )
    max_length: int = Field(
        default=256,
        ge=8,
        description="tokens per record, at most the base's positions; longer records are cut on the left",
    )
    prompt_weight: float = Field(default=0.0, ge=0, le=1, description="weight of the prompt tokens' loss")
    partition: Literal["file", "iid", "dirichlet", "pathological", "natural"] = Field(
        default="file", description="how one data set becomes organisations; 'file': one file each"
    )
    partition_column: str | None = Field(default=None, description="label or id column of the partitioner")
    alpha: float = Field(default=0.5, gt=0, description="dirichlet concentration")
    classes_per_node: int = Field(default=2, ge=1, description="pathological partitions")
    validation: float = Field(default=0.1, ge=0, lt=1, description="share held out for validation")
    test_share: float = Field(default=0.1, ge=0, lt=1, description="share held out for the global test")
    samples: int = Field(default=200, ge=1, description="embedded: training records per organisation")
    test_samples: int = Field(default=192, ge=8, description="embedded: records of the global test")
    mix: float = Field(default=0.1, ge=0, le=1, description="embedded: share of other organisations' topics")


class ServerOptimiserConfig(Section):
    """The step the coordinator takes along the mean update."""

    name: Literal["mean", "momentum", "adam"] = Field(default="mean", description="server optimiser")
    lr: float = Field(default=1.0, gt=0, description="server learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum, or Adam's beta1")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam's beta2")
    epsilon: float = Field(default=1e-8, gt=0, description="Adam's epsilon")


class FederationConfig(Section):
    """Rounds, nodes and local training."""

    nodes: int = Field(
        default=4, ge=1, description="number of organisations; left out: one for each file of data.source"
    )
    rounds: int = Field(default=10, ge=1, description="number of rounds")
    participation: float = Field(default=1.0, gt=0, le=1, description="share of nodes asked each round")
    selection: Selection = Field(
        default="seeded",
        description="which nodes take part in a round: a share drawn from the seed, each node at random in "
        "secret, or in turns",
    )
    quorum: int = Field(default=0, ge=0, description="valid replies needed to apply a round; 0: a majority")
    deadline: float = Field(default=3600.0, gt=0, description="seconds a round may take")
    grace: float = Field(
        default=4.0,
        ge=0,
        description="deployed: once all but a third (of three or more: all but one) have answered, the "
        "others get this many times that time, at least 30 s; 0: until the deadline",
    )
    norm_bound: float = Field(
        default=0.0,
        ge=0,
        description="L2 norm above which an update is refused (norm-clip: scaled down to it); 0: no limit",
    )
    norm_ratio: float = Field(
        default=10.0,
        ge=0,
        description="an update is refused if its L2 norm is this many times the round's median (of three "
        "or more); 0: no limit; off where single updates must not be looked at",
    )
    robust: RuleName = Field(
        default="auto",
        description="aggregation that withstands hostile updates; auto: the geometric median of 3 to 100 "
        "nodes where single updates may be compared, else the mean",
    )
    trim: float = Field(
        default=0.2, ge=0, lt=0.5, description="trimmed-mean: share of nodes left out on either side"
    )
    stock_nodes: bool = Field(
        default=False,
        description="let a stock Flower SuperNode take part, which runs whatever code the coordinator sends",
    )
    local_steps: int = Field(default=10, ge=1, description="optimiser steps per round and node")
    batch_size: int = Field(default=16, ge=1, description="records per step (expected, under DP)")
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="local optimiser")
    lr: float = Field(default=1e-2, gt=0, description="local learning rate in round 1")
    lr_decay: float = Field(default=0.7, ge=0, lt=1, description="linear fall of the local rate over the run")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of local SGD")
    max_grad_norm: float = Field(default=1.0, gt=0, description="clip of the batch gradient without DP")
    backend: Literal["inprocess", "ray", "deployment"] = Field(
        default="inprocess", description="how nodes run"
    )
    evaluate_every: int = Field(
        default=0, ge=0, description="global evaluation every n rounds; 0: only at the end"
    )
    stop_after: int = Field(
        default=0,
        ge=0,
        description="end the run once so many rounds have not lowered the released loss "
        "(privacy.loss_share), smoothed over as many rounds, by its standard error; 0: never",
    )
    server: ServerOptimiserConfig = Field(default_factory=ServerOptimiserConfig)


class DirectionConfig(Section):
    """How one direction is compressed."""

    codec: CodecName = Field(
        default="ternary", description="envelope codec; auto: the most energy per bit, round by round"
    )
    density: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="share of values sent (auto: as many bytes as ternary at this share)",
    )
    support: Literal["seed", "released"] = Field(
        default="seed",
        description="masked-sign, dithered: values drawn from the seed, or largest in the last broadcast",
    )
    error_feedback: bool = Field(default=True, description="carry what was not sent into the next round")


class SecureConfig(Section):
    """Secure aggregation: the coordinator learns the sum of the updates and nothing else of them."""

    enabled: bool = Field(default=False, description="mask every update; needs the ternary codec up")
    threshold: float = Field(
        default=0.67,
        gt=0.5,
        le=1,
        description="share of the roster that must stay to the end and unmask the sum; raised if colluders "
        "require it",
    )
    min_nodes: int = Field(
        default=2, ge=2, description="nodes beside the colluders in every sum that is ever opened, at least"
    )
    colluders: int = Field(
        default=1,
        ge=0,
        description="nodes that may collude with the coordinator: all claims hold against this many",
    )
    share: float = Field(default=1.0, gt=0, le=1, description="share of the values that a round sums")
    bits: Literal[8, 16, 32] = Field(default=8, description="bits of one masked value; 8 for ternary")


class ExchangeConfig(Section):
    """Both directions of the exchange."""

    profile: Profile = Field(
        default="none",
        description="named settings for a bandwidth; explicit settings win; without it: private where nodes "
        "protect records or persons, else none",
    )
    cache_rounds: int = Field(
        default=64,
        ge=0,
        description="broadcasts kept for nodes that missed rounds; 0: the whole state instead",
    )
    up: DirectionConfig = Field(default_factory=DirectionConfig)
    down: DirectionConfig = Field(default_factory=DirectionConfig)
    secure: SecureConfig = Field(default_factory=SecureConfig)


class AuditConfig(Section):
    """What the built-in audit taps and attacks."""

    enabled: bool = Field(default=True, description="tap updates during the run and audit them at the end")
    rounds: tuple[int | Literal["middle"], ...] = Field(
        default=("middle", -1), description="rounds whose updates are tapped, such as 1; -1: the last"
    )
    nodes: int = Field(default=2, ge=1, description="how many nodes are tapped")
    attacks: tuple[AttackName, ...] = Field(
        default=(*ATTACKS.shipped, *AUDIT_PARTS),
        description="attacks on updates; released: those on the adapter; epsilon: audits of the claim",
    )
    threshold: float = Field(default=0.1, ge=0, le=1, description="excess over any baseline that leaks")
    outbox: Literal["off", "report", "refuse"] = Field(
        default="off",
        description="attack each update in the node before it leaves; report: record the result; refuse: "
        "also hold back an update that leaks or whose attack was not finished",
    )
    outbox_seconds: float = Field(
        default=600.0,
        gt=0,
        description="limit in CPU seconds of an attack in the outbox; one that it stops is not finished",
    )
    canary_form: Literal["codes", "written"] = Field(default="codes", description="written: by the base")
    canaries: int = Field(
        default=0,
        ge=0,
        description="made-up secrets per simulated node, in 1, 8 and 32 copies in turn; each is trained on "
        "with probability one half",
    )

    def taps(self, round: int, rounds: int) -> bool:
        """Whether a 1-based round of a run of ``rounds`` is tapped."""
        places = ((rounds + 1) // 2 if entry == "middle" else entry for entry in self.rounds)
        return round in {rounds + 1 + place if place < 0 else place for place in places}


class RunConfig(Section):
    """The run itself."""

    name: str = Field(default="embedded", description="name in reports")
    seed: int = Field(
        default=0, ge=0, description="seed of every reproducible stream; never of privacy noise"
    )
    baselines: tuple[Baseline, ...] = Field(default=(), description="baselines, trained beside the run")
    private: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that the private baseline changes, as 'section.key' = value",
    )
    checkpoint_every: int = Field(default=1, ge=1, description="rounds between checkpoints")
    engine: Engine = Field(
        default="auto", description="per-example gradients: batched where right, low-memory loop, or Opacus"
    )
    tokens_at_once: int = Field(default=8192, ge=8, description="padded tokens of one forward pass")


class Config(Section):
    """The whole configuration of a run; one TOML table per section."""

    base: BaseConfig = Field(default_factory=BaseConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    exchange: ExchangeConfig = Field(default_factory=ExchangeConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    run: RunConfig = Field(default_factory=RunConfig)

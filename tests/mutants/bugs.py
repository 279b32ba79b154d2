"""The 38 known privacy bugs: where they were seen, and what guards against them here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness import Mutant

HEAD = "| # | bug | seen in | what guards against it here | mutants | killed by (below `tests/`) |\n"
RULE = "|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Bug:
    """One row of the table.

    Attributes:
        number: 1 to 38.
        name: what goes wrong.
        seen: projects and their issues; a dash where it was not seen, only feared.
        guard: what keeps it out of this repository.
    """

    number: int
    name: str
    seen: str
    guard: str


BUGS = (
    Bug(
        1,
        "sensitivity of the mean taken for that of the sum; noise divided by the batch twice",
        "jax-privacy #395, TF Privacy #153",
        "noise of `z * clip` is added to the sum, then all is divided once",
    ),
    Bug(
        2,
        "clip after averaging, per tensor, or per set of records",
        "fedbiomed #1443; Flower per ArrayRecord",
        "one norm over all trainables of a unit, before the sum; the coordinator clips each update itself",
    ),
    Bug(3, "weighted mean with noise for uniform weights", "Flower (z .11)", "every node has weight 1"),
    Bug(
        4,
        "fewer replies than the noise assumes",
        "Flower (z .40)",
        "divisor and noise are constants of the plan",
    ),
    Bug(
        5,
        "divisor or rate from the private number of records or from the actual batch",
        "Opacus #819",
        "q, B and T are public constants of one frozen plan",
    ),
    Bug(
        6,
        "shuffled or fixed-size batches accounted for as Poisson draws",
        "Opacus `poisson_sampling=False`, jax-privacy #121",
        "independent coins per unit and step; amplification for secret coins only",
    ),
    Bug(
        7,
        "a batch cut off or left out; an empty one drawn again or left out",
        "Opacus #161",
        "a draw of any size is computed in physical batches; an empty one is a step of noise",
    ),
    Bug(
        8,
        "weighted samplers and subsets lose the rate",
        "Opacus #813",
        "one threshold for all units; the plan owns the sampler",
    ),
    Bug(
        9,
        "replaced units mixed up with added or removed ones",
        "dp-accounting: RDP against PLD",
        "add-or-remove-one everywhere, compared with dp-accounting and Opacus",
    ),
    Bug(
        10,
        "GDP by the central limit theorem, or the classical Gaussian formula",
        "Opacus GDP, Flower LocalDpMod",
        "PLD only; never below its optimistic twin",
    ),
    Bug(
        11,
        "steps, epochs, rounds or retries undercounted",
        "FL-bench #200",
        "one event per step; each reservation names its steps",
    ),
    Bug(
        12,
        "a ledger that starts anew: restart, new job, renamed or edited data, restored machine",
        "Opacus: one engine per round",
        "a file per node, one budget id per data set for life, a hash chain that the coordinator has seen",
    ),
    Bug(
        13,
        "composed after the release; a crash in between",
        "Flower",
        "reserved, then started, then data, then released; every commit waits for the disk",
    ),
    Bug(
        14,
        "two jobs race past the budget",
        "-",
        "a price is good for the chain that it was worked out on, under the write lock",
    ),
    Bug(
        15,
        "a retry trains without a charge, or sends one update to two rosters",
        "-",
        "a reservation is started once; a stored answer is sent again; one masked vector per attempt",
    ),
    Bug(
        16,
        "noise or sampling seeded from the config; one seed on all nodes",
        "Opacus in a federation",
        "AES-256-CTR keyed by the operating system; seeded runs claim nothing",
    ),
    Bug(
        17,
        "keys of a generator used twice, across tensors, steps or forks",
        "jax #3646",
        "a fresh key for every call; no state",
    ),
    Bug(
        18,
        "tail of float32 noise; sum or noise cast before they are added",
        "torch on CPUs (5.77 deviations)",
        "53-bit uniforms, float64 until the one cast at the end",
    ),
    Bug(
        19,
        "NaN or inf passes the clip; an update of zeros crashes",
        "Flower, Opacus",
        "what is not finite counts as zero; no division by a norm of 0",
    ),
    Bug(
        20,
        "noise left out on accumulating steps, or on parameters without gradient",
        "-",
        "one draw per step over the whole support",
    ),
    Bug(
        21,
        "a parameter trained outside the clip",
        "-",
        "trainables that are not exchanged are refused; the norm is over all that moves",
    ),
    Bug(
        22,
        "operations across examples: batch norm, experts, losses over the batch",
        "jax-privacy's pitfalls",
        "a loss per example; gates on probes; anything coupled is computed one record at a time",
    ),
    Bug(
        23,
        "unit mismatch: several records of a person",
        "-",
        "persons are drawn, summed and clipped as one, with a cap on their records",
    ),
    Bug(
        24,
        "adaptive clip with the wrong sign, or told without noise",
        "Flower",
        "algorithm 1 of Andrew et al.; sum and count are one release",
    ),
    Bug(
        25,
        "compression after the clip raises the norm",
        "measured here: 1.9 to 5.3 times",
        "private plans refuse such codecs; rounding is part of the sensitivity",
    ),
    Bug(
        26,
        "error feedback from what bore no noise",
        "-",
        "residuals are marked private or refused; none under the privacy of nodes",
    ),
    Bug(
        27,
        "support, size or time of a message depends on the data",
        "-",
        "public supports; noise on all of them; seconds stay in the node; heads are salted",
    ),
    Bug(
        28,
        "metrics, losses, counts, early stopping, best checkpoints",
        "all federated toolkits",
        "a private round reports nothing, or a loss that is part of the noisy release; its steps are fixed; "
        "events leave figures of updates out",
    ),
    Bug(
        29,
        "validation overlaps training; tokenizer or statistics fitted on private data",
        "-",
        "parts are disjoint draws; the embedded tokenizer has read public text alone",
    ),
    Bug(
        30,
        "weak generator of masks; seeds used in several rounds",
        "Flower #7522 (28 bits)",
        "256-bit keys, derived with the digest of the round's terms",
    ),
    Bug(
        31,
        "secure sum: both shares of one node; two sets of survivors",
        "Flower",
        "one share per node, one signed set, one opened attempt, on disk before it is sent",
    ),
    Bug(
        32,
        "secure sum: swapped keys, tiny threshold or cohort, different models",
        "Flower",
        "signed and pinned keys, the node's own limits, terms that hold the model's digest",
    ),
    Bug(
        33,
        "quantiser wraps; its range ends one too late",
        "Flower (clip end = target range)",
        "bounds are proven and checked before masking",
    ),
    Bug(
        34,
        "distributed noise falls short after dropouts",
        "-",
        "each share is sized for the least number of nodes",
    ),
    Bug(
        35,
        "no noise or infinite epsilon reported as private",
        "-",
        "such plans are refused, such rounds are recorded without a unit",
    ),
    Bug(36, "the accountant ignores an unknown event", "-", "it refuses, and so does the ledger"),
    Bug(
        37,
        "the solver returns noise whose epsilon exceeds the target",
        "Opacus #346",
        "rounded up, then confirmed at the fine discretisation",
    ),
    Bug(
        38,
        "a point estimate, or the best of many thresholds, reported as a 95 % bound",
        "-",
        "intervals whose coverage is tested; thresholds fixed beforehand",
    ),
)


def table(mutants: Iterable[Mutant]) -> str:
    """The body of docs/privacy-bugs.md: one row per bug."""
    given = list(mutants)
    return HEAD + RULE + "".join(_row(bug, [m for m in given if m.number == bug.number]) for bug in BUGS)


def _row(bug: Bug, mutants: list[Mutant]) -> str:
    made = "<br>".join(f"{mutant.bug} (`{mutant.module}`)" for mutant in mutants)
    tests = "<br>".join(dict.fromkeys(f"`{test}`" for mutant in mutants for test in mutant.tests))
    return f"| {bug.number} | {bug.name} | {bug.seen} | {bug.guard} | {made} | {tests} |\n"

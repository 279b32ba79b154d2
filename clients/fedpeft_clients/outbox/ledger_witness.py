"""Other files that prove the ledger's entries: deleting or restoring the ledger renews no budget.

Each update that left is in the outbox log with the ledger entry that released it, and in the outbox of its
run. The ledger must hold the newest entry of each. The log in turn must hold what the ledger released since
the last loss that was declared: that its run was agreed on, as nothing is trained before, and its update. A
crash separates one release from its line in the log, so that one update may be missing, but not those of two
rounds of a run one after the other. A node where this fails takes no orders until its owner restores the
newest copy, or declares the loss (`declare`), which charges again what the log knows.

What it cannot see: a log put back by a single round; the whole folder put back to an earlier day, ledger, log
and runs together. Within a run the coordinator notices the latter, which knows the newest entry too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from fedpeft.errors import ConfigError, PrivacyError, RunError
from fedpeft.privacy.ledger import Chain, Head, Ledger, entry_bodies
from fedpeft.trust.signed_log import Entry, SignedLog, entries_of
from fedpeft_clients.governance.organisation import Organisation
from fedpeft_clients.process_cache import PROCESS

REMEDY = (
    "restore the newest copy; if there is none, 'fedpeft node ledger declare --because TEXT' charges again "
    "what the outbox log lists and goes on"
)


_KINDS = (b'"kind":"terms"', b'"kind":"train"', b'"kind":"declared"')


class Witness(NamedTuple):
    """An entry of the ledger that must be there, and who says so."""

    place: str
    head: Head


def require(organisation: Organisation) -> None:
    """Refuse to go on with a ledger, or an outbox log, that lost what another file proves.

    Raises:
        PrivacyError: it did; says what is missing and what to do.
    """
    for problem in problems(organisation):
        raise PrivacyError(f"{problem}: no order is taken; {REMEDY}")


def problems(organisation: Organisation) -> list[str]:
    """What is missing, in plain words; nothing where all fits."""
    known = list(_witnesses(organisation))  # before the ledger is read: another process may go on meanwhile
    chain = _chain(organisation)
    missing = [
        f"{witness.place} lists entry {witness.head.hash[:12]} of the ledger, which ends at {chain.head.seq} "
        "without it: it was deleted or put back"
        for witness in _unknown(known, chain)
    ]
    if cut := _broken(organisation.outbox):
        missing.append(cut)
    elif chain.entries and not organisation.outbox.path.stat().st_size:
        missing.append(
            f"the ledger has {chain.head.seq} entries, but the outbox log is empty: it was deleted"
        )
    else:
        missing += _untold(chain, organisation.outbox)  # read after the ledger, which is written before it
    return missing


def declare(organisation: Organisation, because: str, close: bool) -> dict[str, Any]:
    """Go on after a loss that cannot be undone; what the outbox log lists is charged again, in one commit.

    Args:
        organisation: whose ledger or log lost something.
        because: the owner's reason, which is written down and signed.
        close: end the budgets of all data sets for private runs, where the cost of an update that left is
            not known.

    Returns:
        ``restored`` rounds, the privacy-budget ids that were ``closed``, and the ledger's ``head``.

    Raises:
        ConfigError: nothing is missing, or no reason is given.
        PrivacyError: the cost of an update is not known, and ``close`` is not given.
    """
    if not because.strip():
        raise ConfigError("a loss is declared with its reason: say why in --because")
    if not problems(organisation):
        raise ConfigError("nothing is missing that could be declared lost")
    chain, log = _chain(organisation), organisation.outbox
    lost = _lost(log, chain)
    unknown = list(_unknown(_witnesses(organisation), chain))
    named = {head.hash for head in lost}
    nameless = [witness for witness in unknown if witness.head.hash not in named] + [
        Witness(f"entry {entry['seq']} of the outbox log", head)
        for head, entry in lost.items()
        if "charge" not in entry
    ]
    if nameless and not close:
        raise PrivacyError(
            f"the cost of {nameless[0].place} is not known: restore the ledger, or give --close, after which "
            "no data set of this node has a budget for private runs"
        )
    closed = sorted({dataset.lineage for dataset in organisation.datasets().values()}) if nameless else []
    heads = [*lost, *(witness.head for witness in unknown if witness.head.hash not in named)]
    charges = [(entry["charge"], entry["sha256"]) for entry in lost.values() if "charge" in entry]
    charges += [(entry_bodies.closing(lineage), None) for lineage in closed]
    ledger = Ledger(organisation.ledger, None, organisation.signer, strict=True)
    newest = ledger.declare(charges, entry_bodies.declared(because, heads))
    if _broken(log):
        log.set_aside()
    log.append({"time": ledger.clock(), "kind": "declared", "run": None, "to": "", "because": because})
    return {"restored": len(charges) - len(closed), "closed": closed, "head": f"{newest.seq}:{newest.hash}"}


def _broken(log: SignedLog) -> str:
    """What is wrong with the end of the outbox log; nothing where it holds."""
    try:
        log.require_ready()
    except RunError as error:
        return str(error)
    return ""


def _chain(organisation: Organisation) -> Chain:
    """The verified ledger; what this process has verified before is compared only."""
    path = organisation.ledger
    if not path.exists():
        PROCESS.forget_ledger(path)
        return Chain()
    return PROCESS.ledger(path, None, organisation.signer).chain()


def _unknown(known: Iterator[Witness] | list[Witness], chain: Chain) -> Iterator[Witness]:
    """Witnesses of entries that the ledger neither holds nor was declared to have lost.

    They know an entry by its hash: its number is told as that within its run
    (`fedpeft_clients.rounds.ledger_view`).
    """
    recorded = {entry.hash for entry in chain.entries} | _declared(chain)
    yield from (witness for witness in known if witness.head.hash not in recorded)


def _untold(chain: Chain, log: SignedLog) -> Iterator[str]:
    """Runs of which the ledger released what the log lacks, since the last loss that was declared."""
    known, sent = _logged(log)
    for run, rounds in _released(chain).items():
        missing = [(run, round) not in sent for round in rounds]
        if not known.intersection((run, None)):
            yield f"the ledger released updates of run {run[:12]}, which the outbox log does not list"
        elif any(earlier and later for earlier, later in pairwise(missing)):
            yield f"the ledger released rounds of run {run[:12]} that the outbox log lacks: it was put back"


def _logged(log: SignedLog) -> tuple[set[str | None], set[tuple[str, int]]]:
    """Runs that the log says were agreed on, None for a declared loss; and the rounds that it says left."""
    entries = [json.loads(line) for line in log.read() if any(kind in line for kind in _KINDS)]
    sent = {(entry["run"], entry["round"]) for entry in entries if entry["kind"] == "train"}
    agreed = {
        entry["run"]
        for entry in entries
        if entry["kind"] == "declared" or (entry["kind"] == "terms" and entry["facts"]["answer"] == "agreed")
    }
    return agreed | {run for run, _ in sent}, sent


def _released(chain: Chain) -> dict[str, list[int]]:
    """Rounds of each run that were released since the newest declared loss, in order, each once."""
    since = max((entry.seq for entry in chain.entries if entry.kind == "declared"), default=0)
    reserved = {entry.seq: entry.body for entry in chain.entries if entry.kind == "reserve"}
    rounds_of: dict[str, dict[int, None]] = {}
    for entry in chain.entries:
        if entry.kind == "released" and entry.seq > since:
            body = reserved[entry.body["reservation"]]
            rounds_of.setdefault(body["run"], {})[body["round"]] = None
    return {run: list(rounds) for run, rounds in rounds_of.items()}


def _declared(chain: Chain) -> set[str]:
    listed = (entry.body["replaces"] for entry in chain.entries if entry.kind == "declared")
    return {digest for heads in listed for _, digest in heads}


def _lost(log: SignedLog, chain: Chain) -> dict[Head, Entry]:
    """Updates of the outbox log by the ledger entries that released them, which the ledger lacks."""
    sent = [entry for entry in entries_of(log.read()) if entry["kind"] == "train"]
    heads = {_head(entry["facts"]): entry for entry in sent}
    lacking = {witness.head for witness in _unknown([Witness("", head) for head in heads], chain)}
    return {head: entry for head, entry in heads.items() if head in lacking}


def _witnesses(organisation: Organisation) -> Iterator[Witness]:
    """The newest entry that the outbox log lists, and the newest of each run's own outbox."""
    for line in reversed(organisation.outbox.read()):
        if b'"kind":"train"' in line:
            entry = json.loads(line)
            yield Witness(f"entry {entry['seq']} of the outbox log", _head(entry["facts"]))
            break
    for index in sorted(organisation.runs.glob("*/outbox/answers.jsonl")):
        for line in reversed(index.read_bytes().splitlines()):
            if (facts := _facts(line)) is not None:
                yield Witness(f"run {index.parts[-3][:12]}", _head(facts))
                break


def _facts(line: bytes) -> dict[str, Any] | None:
    """A line of a run's own outbox; None for one that a kill has torn."""
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and "ledger_entry" in facts else None


def _head(facts: dict[str, Any]) -> Head:
    return Head(int(facts["ledger_entry"]), str(facts["ledger"]))

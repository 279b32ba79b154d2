"""``fedpeft node ledger``: what was spent, whether it was tampered with, and a copy for others to check."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.cli.signed_logs import public_key
from fedpeft.epsilons import shown, written
from fedpeft.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from fedpeft.privacy.ledger import Budget, Chain, Entry, Head

PLACE = typer.Argument(None, help="A node's folder, its ledger file, or an export; default: the only node.")
LINEAGE = typer.Option(
    None,
    "--budget-id",
    "--lineage",
    help="Only this privacy-budget id; default: all. (--lineage: its old name, until 0.3)",
)
OUT = typer.Option(None, "-o", "--out", help="File to write; default: print it.")
KNOWN = typer.Option(None, help="SEQ:HASH of an entry that was seen before.")
KEY = typer.Option(None, help="The node's public key, 64 hexadecimal digits.")
HOME = typer.Option(None, "--home", help="The node's folder; default: the only one in $FEDPEFT_HOME/node.")
CONFIRM = typer.Option(False, "--confirm", help="Write down that this machine's clock is right.")
BECAUSE = typer.Option(..., help="Why it is lost; written down and signed.")
CLOSE = typer.Option(False, "--close", help="End all budgets where the cost of an update is not known.")
COLUMNS = (
    "entry",
    "time (UTC)",
    "data set",
    "run",
    "round",
    "steps",
    "q",
    "z",
    "unit",
    "trust",
    "state",
    "joint epsilon",
)


SUMS = ("data set", "spent of budget", "last 365 days", "delta", "unit", "trust")


def register(app: typer.Typer) -> None:
    """Add the ``ledger`` commands."""
    group = typer.Typer(help="The node's record of privacy spent.", no_args_is_help=True)
    for command in (show, verify, export, clock, declare):
        group.command(command.__name__)(command)
    app.add_typer(group, name="ledger")


def show(
    place: Path | None = PLACE,
    lineage: str | None = LINEAGE,
    as_json: bool = JSON_OPTION,
) -> None:
    """List what was spent, and the joint epsilon of each data set beside its budget."""
    place = _place(place)
    chain = _chain(place)
    spending = [
        e for e in chain.entries if e.kind not in _free() and lineage in (None, e.body.get("lineage"))
    ]
    states = _states(chain)
    rows = [_facts(entry, states) for entry in spending]
    totals = totals_of(chain, lineage, _budget(place))
    payload = {"head": _text(chain.head), "key": _key(chain), "lineages": totals, "entries": rows}
    emit(payload, as_json, lambda: _show(payload))


def verify(
    place: Path | None = PLACE,
    known: str | None = KNOWN,
    key: str | None = KEY,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check chain and signatures; exits with 6 if it was changed, rolled back or is not this key's."""
    chain = _chain(_place(place))
    head = chain.require(_head(known), public_key(key))
    facts = {"entries": len(chain.entries), "head": _text(head), "key": _key(chain)}
    signed = f"signed by {facts['key']}" if chain.key else "not signed"
    emit(facts, as_json, lambda: typer.echo(f"intact: {head.seq} entries, head {_text(head)}, {signed}"))


def export(place: Path | None = PLACE, out: Path | None = OUT) -> None:
    """Write the ledger as JSON lines, which `verify` checks on any machine."""
    from fedpeft.privacy.ledger.exports import export_text
    from fedpeft.runstore import write_atomic

    text = export_text(_chain(_place(place)))
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; choose another --out")
    write_atomic(out, text.encode())


def clock(confirm: bool = CONFIRM, home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Compare the ledger's time with this machine's, and confirm a leap of the clock that was right."""
    import time

    from fedpeft.privacy.ledger import Ledger
    from fedpeft.privacy.ledger.clock import latest
    from fedpeft_clients.governance.organisation import open_organisation

    organisation = open_organisation(home)
    ledger = Ledger(organisation.ledger, None, organisation.signer, strict=True)
    seen, now = latest(ledger.entries()), time.time()
    if confirm:
        ledger.confirm_clock()
    facts = {"newest_entry": _moment(seen) if seen else None, "clock": _moment(now), "confirmed": confirm}
    confirmed = "; confirmed: the ledger goes on from there" if confirm else ""
    newest = facts["newest_entry"] or "none"
    emit(facts, as_json, lambda: typer.echo(f"newest entry {newest}, clock {facts['clock']}{confirmed}"))


def declare(
    because: str = BECAUSE, close: bool = CLOSE, home: Path | None = HOME, as_json: bool = JSON_OPTION
) -> None:
    """Go on after ledger or outbox log were lost for good: what the log lists is charged again."""
    from fedpeft_clients.governance.organisation import open_organisation
    from fedpeft_clients.outbox import ledger_witness

    facts = ledger_witness.declare(open_organisation(home), because, close)
    closed = f"; without a budget from now on: {', '.join(facts['closed'])}" if facts["closed"] else ""
    emit(facts, as_json, lambda: typer.echo(f"{facts['restored']} rounds charged again{closed}"))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _chain(place: Path) -> Chain:
    from fedpeft.privacy.ledger.exports import load_chain

    return load_chain(place / "ledger.sqlite" if place.is_dir() else place)


def _place(place: Path | None) -> Path:
    """What was named; else this folder if it holds a ledger, else the only node on this machine."""
    if place is not None or Path("ledger.sqlite").exists():
        return place or Path()
    from fedpeft_clients.governance.organisation import open_organisation

    return open_organisation().path


def _free() -> tuple[str, ...]:
    from fedpeft.privacy.ledger.chain import FREE

    return FREE


def _states(chain: Chain) -> dict[int, str]:
    """The last that happened to each reservation; later entries overwrite earlier ones."""
    after = [e for e in chain.entries if e.kind in ("started", "released")]
    return {entry.body["reservation"]: entry.kind for entry in after}


def _facts(entry: Entry, states: dict[int, str]) -> dict[str, Any]:
    """What the table shows of an entry; an epsilon without a bound is ``null`` in the ledger alone."""
    body: dict[str, Any] = entry.body
    event: dict[str, Any] = body.get("event") or {}
    reached = body.get("epsilon")
    return {
        "seq": entry.seq,
        "time": _moment(entry.time),
        "lineage": body.get("lineage"),
        "run": body.get("run") or body.get("purpose"),
        "round": body.get("round"),
        "steps": event.get("repeats"),
        "kind": event.get("kind"),
        "q": event.get("sampling_probability"),
        "z": event.get("noise_multiplier"),
        "unit": body.get("unit") or "not private",
        "trust": body.get("trust"),
        "state": states.get(entry.seq, "reserved") if entry.kind == "reserve" else entry.kind,
        "epsilon": written(math.inf if reached is None else float(reached)) if "epsilon" in body else None,
    }


def totals_of(chain: Chain, lineage: str | None, budget: Budget) -> list[dict[str, Any]]:
    """Joint epsilon now of each promise that was made of each data set, beside its budget."""
    from fedpeft.privacy.ledger.budget import lineages

    names = [name for name in lineages(chain.entries) if lineage in (None, name)]
    limits = {"budget": budget.total, "yearly_budget": budget.yearly}
    return [{"lineage": name, **total, **limits} for name in names for total in _total(chain, name, budget)]


def _total(chain: Chain, lineage: str, budget: Budget) -> list[dict[str, Any]]:
    """Joint epsilon over all time and over 365 days; ``null``, with a cause, where it is unknown."""
    import time

    from fedpeft.privacy.ledger import budget as spending
    from fedpeft.privacy.ledger import clock

    try:
        spent = spending.charges(chain.entries, lineage)
    except PrivacyError as error:
        unknown = dict.fromkeys(("epsilon", "epsilon_365_days", "delta", "unit", "trust"))
        return [unknown | {"cause": str(error)}]
    now, delta = clock.present(chain.entries, time.time(), False), budget.delta or spending.delta_of(spent)
    recent = [charge for charge in spent if charge.moment >= now - spending.YEAR]
    totals: list[dict[str, Any]] = []
    for claim in spending.promised(spent):
        total, yearly = (spending.joint(part, delta, claim) for part in (spent, recent))
        sums = {"epsilon": total, "epsilon_365_days": yearly}
        epsilons = {name: written(value) for name, value in sums.items()}
        totals.append({**epsilons, "delta": delta, **claim._asdict()})
    return totals


def _budget(place: Path) -> Budget:
    """The limits in a node's home; a bare file has none."""
    from fedpeft.privacy.ledger import Budget

    if (place / "policy.toml").is_file():
        from fedpeft_clients.governance.policy import parse_policy

        return parse_policy((place / "policy.toml").read_text(encoding="utf-8")).privacy.budget()
    if not (place / "node.json").is_file():
        return Budget()
    from fedpeft_clients.rounds.run_home import open_home

    return open_home(place).budget or Budget()


def _show(payload: dict[str, Any]) -> None:
    names = ("seq", "time", "lineage", "run", "round", "steps", "q", "z", "unit", "trust", "state", "epsilon")
    rows = ([_cell(name, row[name]) for name in names] for row in payload["entries"])
    table(f"ledger at {payload['head']}", COLUMNS, rows)
    table("joint epsilon", SUMS, map(_sums, payload["lineages"]))


def _sums(total: dict[str, Any]) -> tuple[str, ...]:
    whole, year = (shown(total[name], ".4f", "unknown") for name in ("epsilon", "epsilon_365_days"))
    claim = (_cell(name, total[name]) for name in ("delta", "unit", "trust"))
    limits = _limit(total["budget"]), _limit(total["yearly_budget"])
    return (total["lineage"], f"{whole} of {limits[0]}", f"{year} of {limits[1]}", *claim)


def _cell(name: str, value: Any) -> str:
    if name == "epsilon":
        return shown(value, ".4f")
    if name == "run":
        return str(value)[:12]
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _limit(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g}"


def _text(head: Head) -> str:
    return f"{head.seq}:{head.hash}"


def _key(chain: Chain) -> str | None:
    return chain.key.hex() if chain.key else None


def _head(text: str | None) -> Head | None:
    from fedpeft.privacy.ledger import Head

    if text is None:
        return None
    seq, _, digest = text.partition(":")
    if not seq.isdecimal() or len(digest) != 64:
        raise ConfigError(f"--known {text!r} must be SEQ:HASH, as `verify` prints it")
    return Head(int(seq), digest)

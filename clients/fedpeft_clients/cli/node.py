"""``fedpeft node``: what an organisation does with its own node."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft_clients.cli import ledger, outbox, roster
from fedpeft_clients.cli import policy as policy_cli

if TYPE_CHECKING:
    from fedpeft_clients.governance.organisation import DataSet, Organisation
    from fedpeft_clients.governance.record_overlap import Overlap

HOME = typer.Option(None, "--home", help="The node's folder; default: the only one in $FEDPEFT_HOME/node.")
COORDINATOR = typer.Option(None, help="Fingerprint, where several coordinators are joined.")
SHOWN = 2
"""Records of a preview."""
_WIDTH = 200


def register(app: typer.Typer) -> None:
    """Add the ``node`` commands."""
    group = typer.Typer(help="An organisation's node.", no_args_is_help=True)
    for command in (init, join, runs, approve, run, status, doctor):
        group.command(command.__name__)(command)
    data = typer.Typer(help="The organisation's data sets.", no_args_is_help=True)
    data.command("add")(add_data)
    data.command("list")(list_data)
    group.add_typer(data, name="data")
    for module in (policy_cli, ledger, outbox, roster):
        module.register(group)
    app.add_typer(group, name="node")


def _open(home: Path | None) -> Organisation:
    from fedpeft_clients.governance.organisation import open_organisation

    return open_organisation(home)


def init(
    name: str = typer.Argument(help="Name of the organisation in the federation."),
    home: Path | None = typer.Option(None, "--home", help="Folder to make; default: in $FEDPEFT_HOME/node."),
    policy: str = typer.Option("strict", help="Policy to start from: strict or research-pilot."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Make an organisation's folder: its keys, which never leave it, and its policy."""
    from fedpeft.runstore import state_root
    from fedpeft.trust import fingerprint, public_line
    from fedpeft_clients.governance.organisation import init_organisation
    from fedpeft_clients.governance.policy import template

    made = init_organisation(home or state_root() / "node" / name, name, template(policy))
    line = public_line(made.transport.read_bytes())
    facts = {
        "name": name,
        "home": str(made.path),
        "fingerprint": fingerprint(line + made.signer.public),
        "signing_key": made.signer.public.hex(),
    }
    emit(facts, as_json, lambda: _show_made(facts))


def _show_made(facts: dict[str, Any]) -> None:
    typer.echo(f"node {facts['name']} made in {facts['home']}")
    typer.echo(f"its fingerprint, for the coordinator's operator: {facts['fingerprint']}")
    typer.echo(f"its public signing key: {facts['signing_key']}")
    typer.echo("next: fedpeft node policy edit, fedpeft node data add, fedpeft node join")


def join(
    address: str = typer.Argument(help="HOST:PORT of the coordinator."),
    token: str = typer.Option(
        "-",
        envvar="FEDPEFT_TOKEN",
        help="One-time token of 'fedpeft server enroll'; '-': from standard input, which 'ps' does not show.",
    ),
    token_file: Path | None = typer.Option(None, help="File that holds the token, instead."),
    wait: float = typer.Option(600.0, min=0, help="Seconds to wait for the approval."),
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Ask a coordinator for admission; exits with 7 if its operator has not decided in time."""
    from fedpeft.errors import FederationError
    from fedpeft.protocol.enrolment import Token
    from fedpeft_clients.governance.joining import Address, join

    place, secret = Address.parse(address), Token.parse(_secret(token, token_file))
    grant = join(_open(home), place, secret, wait, lambda line: typer.echo(line, err=True))
    if grant is None:
        raise FederationError("the coordinator's operator has not approved this node yet; run join again")
    facts = {"coordinator": grant.fingerprint, "federation": grant.federation, "app": grant.app}
    emit(facts, as_json, lambda: typer.echo(f"joined {grant.federation}, coordinator {grant.fingerprint}"))


def _secret(token: str, file: Path | None) -> str:
    """A token as given, or from a file or from standard input."""
    from fedpeft.errors import ConfigError

    try:
        if file is not None:
            return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {str(file)!r} cannot be read ({type(error).__name__})") from None
    if token != "-":
        return token
    if sys.stdin.isatty():
        return typer.prompt("token", hide_input=True)
    return sys.stdin.readline().strip()


def add_data(
    name: str = typer.Argument(help="Name of the data set on this node."),
    file: Path = typer.Argument(help="JSON, CSV, TSV or Parquet file, or a datasets folder; it stays there."),
    lineage: str = typer.Option(
        ...,
        "--budget-id",
        "--lineage",
        help="Privacy-budget id of the data set in the ledger, for life; edits keep it. (--lineage: its old "
        "name, until 0.3)",
    ),
    prompt: str = typer.Option("prompt", "--prompt-column", help="Column of the prompt."),
    completion: str = typer.Option("completion", "--completion-column", help="Of the completion or label."),
    messages: str | None = typer.Option(None, "--messages-column", help="Of chats; instead of both."),
    person: str | None = typer.Option(None, "--person-column", help="Of whose record it is."),
    format: str = typer.Option("auto", help="auto, jsonl, json, csv, parquet, arrow or datasets."),
    encoding: str = typer.Option("utf-8", help="Encoding of a text file: utf-8, cp1252, utf-16, ..."),
    template: str | None = typer.Option(
        None, "--template", help="How columns make a record, as data.template; the last is the answer."
    ),
    preview: bool = typer.Option(True, help="Print two records on this screen."),
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Register a data set; the records are read, counted and shown here, and not copied."""
    from fedpeft.config.template import written_in_a_shell
    from fedpeft.data import Notes, read_records
    from fedpeft_clients.governance.data_check import check_chats, columns_of
    from fedpeft_clients.governance.organisation import DataSet

    organisation, notes = _open(home), Notes()
    columns = {"prompt": prompt, "completion": completion, "messages": messages, "person": person}
    columns |= {"format": format, "partition_column": None}
    columns |= {} if encoding == "utf-8" else {"encoding": encoding}
    columns |= {} if template is None else {"template": written_in_a_shell(template)}
    records = read_records(file, columns_of(columns), notes=notes)
    check_chats(organisation, records, notes)
    dataset = DataSet(str(file.resolve()), lineage, len(records), columns)
    _check_lineage(organisation, name, dataset)
    common = _admitted(organisation, dataset)
    organisation.add(name, dataset)
    for note in notes.lines():
        typer.echo(f"note: {note}", err=True)
    shown = [(record.prompt[:_WIDTH], record.completion[:_WIDTH]) for record in records[:SHOWN]]
    emit(
        {"name": name, **asdict(dataset), "in_common": [asdict(record) for record in common]},
        as_json,
        lambda: _show_added(name, dataset, shown if preview else []),
    )


def _check_lineage(organisation: Organisation, name: str, dataset: DataSet) -> None:
    """A data set keeps its privacy-budget id: under another one it would have a fresh budget."""
    from fedpeft.errors import ConfigError

    for known, registered in organisation.datasets().items():
        same = known == name or registered.file == dataset.file
        if same and registered.lineage != dataset.lineage:
            raise ConfigError(
                f"data set {known!r} has privacy-budget id {registered.lineage!r}, which it keeps for life; "
                f"give --budget-id {registered.lineage}"
            )


def _admitted(organisation: Organisation, dataset: DataSet) -> list[Overlap]:
    """Refuse records that another privacy-budget id has a budget for; warn of what the policy allows."""
    from fedpeft_clients.governance.policy import parse_policy
    from fedpeft_clients.governance.record_overlap import admit

    policy = parse_policy(organisation.policy.read_text(encoding="utf-8"))
    common = admit(organisation, dataset, policy.privacy.max_overlap)
    for overlap in common:
        typer.echo(
            f"warning: {overlap}: each privacy-budget id has its own budget; these records spend both",
            err=True,
        )
    return common


def _show_added(name: str, dataset: DataSet, shown: list[tuple[str, str]]) -> None:
    typer.echo(
        f"data set {name}: {dataset.records} records in {dataset.file}, privacy-budget id {dataset.lineage}"
    )
    for prompt, completion in shown:
        typer.echo(f"  {prompt!r} -> {completion!r}")


def list_data(home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """List the data sets; no record is opened."""
    known = _open(home).datasets()
    rows = [(name, dataset.records, dataset.lineage, dataset.file) for name, dataset in known.items()]
    facts = {"datasets": {name: asdict(dataset) for name, dataset in known.items()}}
    emit(facts, as_json, lambda: table("data sets", ("name", "records", "privacy-budget id", "file"), rows))


def runs(home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Show the runs that coordinators offered, and in plain words what they ask for."""
    from fedpeft_clients.cli.status import describe_offers

    proposals = describe_offers(_open(home))
    emit({"runs": proposals}, as_json, lambda: _show_runs(proposals))


def _show_runs(proposals: list[dict[str, Any]]) -> None:
    for proposal in proposals:
        typer.echo(
            f"\nrun {proposal['run'][:12]} of coordinator {proposal['coordinator']}: {proposal['answer']}"
        )
        if proposal["rule"]:
            typer.echo(f"  rule {proposal['rule']}: {proposal['sentence']}")
        for line in proposal["terms"]:
            typer.echo(f"  {line}")
        if proposal["answer"] == "waiting" and not proposal["rule"]:
            typer.echo(
                f"  to take part: fedpeft node approve {proposal['run'][:12]} --terms {proposal['hash'][:32]}"
            )
    if not proposals:
        typer.echo("no run was offered yet")


def approve(
    run: str = typer.Argument(help="First digits of the run, as 'fedpeft node runs' shows it."),
    terms: str | None = typer.Option(None, help="Hash of the terms that you have read, from 'node runs'."),
    data: str | None = typer.Option(None, help="Data set to train on; default: the only one."),
    refuse: bool = typer.Option(False, "--refuse", help="Refuse the run, also one that was approved."),
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Let this node take part in a run, or refuse it; it holds from the next message on."""
    from fedpeft_clients.governance.policy import parse_policy
    from fedpeft_clients.governance.run_approval import approve, named_data

    organisation = _open(home)
    name = named_data(organisation, parse_policy(organisation.policy.read_text(encoding="utf-8")), data)
    if not refuse and name in organisation.datasets():
        _admitted(organisation, organisation.datasets()[name])
    saved = approve(organisation, run, terms, data, refuse)
    decision = "refused" if refuse else "approved"
    emit(
        {"run": saved.run, "answer": decision},
        as_json,
        lambda: typer.echo(f"run {saved.run[:12]}: {decision}"),
    )


def run(
    coordinator: str | None = COORDINATOR,
    poll: float = typer.Option(0.5, min=0.02, help="Polling interval (s)."),
    home: Path | None = HOME,
) -> None:
    """Serve a coordinator until SIGTERM; meant for a service manager."""
    from fedpeft_clients.service.service import serve

    organisation = _open(home)
    serve(organisation, organisation.grant(coordinator), poll)


def status(home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Show coordinators, runs, privacy spent and what left last."""
    from fedpeft_clients.cli.status import examine, show

    facts = examine(_open(home))
    emit(facts, as_json, lambda: show(facts))


def doctor(home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Check keys, policy, base, data, disk, clock and memory; exits with 1 if something is wrong."""
    from fedpeft_clients.cli.doctor import examine

    checks = examine(_open(home))
    wrong = [check for check in checks if check["state"] == "wrong"]
    emit({"checks": checks, "ok": not wrong}, as_json, lambda: _show_checks(checks))
    if wrong:
        raise typer.Exit(1)


def _show_checks(checks: list[dict[str, str]]) -> None:
    for check in checks:
        typer.echo(f"{check['state']:>5}  {check['check']}: {check['words']}")

"""``fedpeft server``: what a coordinator's operator does."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.cli.signed_logs import LogCommands, moment
from fedpeft.epsilons import shown

if TYPE_CHECKING:
    from fedpeft.trust.signed_log import Entry, SignedLog
    from fedpeft_server.service.run_view import RunView
    from fedpeft_server.service.server_home import ServerHome

HOME_OPTION = typer.Option(
    None, "--home", help="The coordinator's folder; default: the only one in $FEDPEFT_HOME/server."
)
NODE = typer.Argument(help="Name of the organisation's node.")
RUN = typer.Argument(help="Name of the run.")
LOG_COLUMNS = ("entry", "time (UTC)", "user", "action", "of", "fingerprint or config")
SET_OPTION = typer.Option([], "--set", help="key=value, may be given many times.")


def register(app: typer.Typer) -> None:
    """Add the ``server`` commands."""
    group = typer.Typer(help="A federation's coordinator.", no_args_is_help=True)
    for command in (init, up, enroll, approve, nodes, revoke, renew, submit, status, stop, doctor):
        group.command(command.__name__)(command)
    LogCommands("operator", _operators, LOG_COLUMNS, _act).register(group, "log", "What operators did.")
    app.add_typer(group, name="server")


def _open(home: Path | None) -> ServerHome:
    from fedpeft_server.service.server_home import ServerHome, only_home

    return ServerHome.open(home or only_home())


def _operators(home: Path | None) -> tuple[str, SignedLog]:
    opened = _open(home)
    return opened.settings.name, opened.operator_log


def _act(entry: Entry) -> tuple[str, ...]:
    """An operator's act as a line of a table."""
    subject = entry.get("node") or entry.get("run") or entry.get("host")
    detail = entry.get("fingerprint") or entry.get("config") or "-"
    return (str(entry["seq"]), moment(entry), str(entry["uid"]), entry["action"], str(subject), detail)


def init(
    host: str = typer.Option(..., help="Name or address under which nodes reach this machine."),
    port: int = typer.Option(..., min=1, max=65535, help="Public port of the federation."),
    name: str = typer.Option("coordinator", help="Name of the federation."),
    bind: str | None = typer.Option(None, help="Address to listen on; default: HOST if it is an address."),
    enrolment_port: int | None = typer.Option(None, min=1, max=65535, help="Default: PORT + 1."),
    inside_port: int | None = typer.Option(None, min=1, max=65535, help="Loopback; default: PORT + 2."),
    metrics_port: int | None = typer.Option(None, min=1, max=65535, help="Loopback; default: PORT + 3."),
    home: Path | None = HOME_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Make a coordinator: keys, a certificate authority and settings."""
    from fedpeft_server.cli.init import make

    made, fingerprints = make(home, name, host, bind, (port, enrolment_port, inside_port, metrics_port))
    facts = {"home": str(made.path), **asdict(made.settings), **fingerprints}

    def show() -> None:
        typer.echo(f"made {made.path} for {host}, ports {port} and {made.settings.enrolment_port}")
        typer.echo(f"CA fingerprint:  {fingerprints['ca']}\nkey fingerprint: {fingerprints['key']}")
        typer.echo("next: fedpeft server up, then fedpeft server enroll NAME for each organisation")

    emit(facts, as_json, show)


def up(home: Path | None = HOME_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Run the service until SIGTERM; its events are JSON lines on stderr and in log.jsonl."""
    import threading

    from fedpeft_server.service.child_process import begin_service
    from fedpeft_server.service.service_log import open_log
    from fedpeft_server.service.supervisor import Supervisor

    opened, stop = _open(home), threading.Event()
    begin_service(stop, opened.path / "flower")
    with open_log(opened.log) as emit_line:
        Supervisor(opened, emit_line, stop).run()
    emit({"ended": True}, as_json, lambda: None)


def enroll(
    name: str = NODE,
    hours: float = typer.Option(24.0, help="Hours in which the node has to use the token first."),
    stock: bool = typer.Option(
        False, "--stock", help="The node is a stock Flower SuperNode, which signs its requests less."
    ),
    home: Path | None = HOME_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Print a one-time token for one organisation's node; its text is not stored."""
    from fedpeft_server.service.node_registry import Registry

    opened = _open(home)
    token, settings = Registry(opened).new_token(name, hours, stock), opened.settings
    address = f"{settings.host}:{settings.port}"
    facts = {"name": name, "token": str(token), "address": address, "hours": hours, "ca": token.ca}

    def show() -> None:
        typer.echo(f"token for {name}, good for {hours:g} hours and one key:\n\n{token}\n")
        typer.echo(f"CA fingerprint: {token.ca}")
        typer.echo(f"on the node: fedpeft node join {address} --token TOKEN")

    emit(facts, as_json, show)


def approve(
    name: str = NODE,
    fingerprint: str = typer.Option(..., help="What the node's operator reads out of 'fedpeft node join'."),
    home: Path | None = HOME_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Admit a node that waits, if its fingerprint is the one given."""
    from fedpeft_server.service.node_registry import Registry

    node = Registry(_open(home)).approve(name, fingerprint)
    emit({"name": name, **asdict(node)}, as_json, lambda: typer.echo(f"{name} is enrolled"))


def nodes(home: Path | None = HOME_OPTION, as_json: bool = JSON_OPTION) -> None:
    """List the nodes: state, last contact and fingerprint."""
    from fedpeft_server.service.contacts import read_contacts
    from fedpeft_server.service.node_registry import Registry
    from fedpeft_server.service.run_view import ago

    opened = _open(home)
    known, seen = Registry(opened).nodes(), dict[str, float]()
    for run in opened.run_folders():
        for name, contact in read_contacts(run).items():
            seen[name] = max(seen.get(name, 0.0), contact.seen)
    facts = {name: asdict(node) | {"seen": seen.get(name, 0.0)} for name, node in known.items()}
    now = time.time()

    def show() -> None:
        rows = [
            (name, node.state, ago(node.since, now), ago(seen.get(name, 0.0), now), node.fingerprint)
            for name, node in known.items()
        ]
        table("nodes", ("name", "state", "since", "last contact", "fingerprint"), rows)

    emit({"nodes": facts}, as_json, show)


def revoke(name: str = NODE, home: Path | None = HOME_OPTION, as_json: bool = JSON_OPTION) -> None:
    """End a node's part in the federation; the other nodes do not notice."""
    from fedpeft_server.service.node_registry import Registry

    node = Registry(_open(home)).revoke(name)
    emit({"name": name, **asdict(node)}, as_json, lambda: typer.echo(f"{name} is revoked"))


def renew(home: Path | None = HOME_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Renew the server certificate now; a running service takes it up by itself, and nodes go on."""
    from fedpeft_server.service import certificates

    opened = _open(home)
    opened.record("renew", host=opened.settings.host)
    certificates.renew(opened.path, opened.settings.host)
    end = certificates.load(opened.path / "server.crt").not_valid_after_utc
    emit(
        {"until": end.isoformat()},
        as_json,
        lambda: typer.echo(f"the certificate is good until {end:%Y-%m-%d}"),
    )


def submit(
    config: Path = typer.Argument(help="Scenario file (TOML)."),
    set_: list[str] = SET_OPTION,
    name: str | None = typer.Option(None, help="Name of the run; default: run.name of the file."),
    labels: Path | None = typer.Option(None, help="JSON list of classes, for sequence classification."),
    eval_data: Path | None = typer.Option(
        None,
        "--eval-data",
        "--judge",
        help="Held-out records of your own: rounds (federation.evaluate_every) and result are evaluated "
        "on them. (--judge: its old name, until 0.3)",
    ),
    home: Path | None = HOME_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a run and hand it to the service, which starts it now or when it is up again."""
    from fedpeft.config.scenarios import old_names
    from fedpeft_server.cli.submit import Files
    from fedpeft_server.cli.submit import submit as hand_over

    facts = hand_over(_open(home), config, set_, name, Files(labels, eval_data))
    if renamed := old_names(config, set_):
        typer.echo(renamed, err=True)
    text = f"submitted {facts['run']}: {facts['rounds']} rounds, {facts['nodes']} nodes"
    claim = f", {facts['privacy']}" if facts["privacy"] else ""
    evaluated = f"\nevaluated on {facts['judged']} records of your own" if facts["judged"] else ""
    noted = "".join(f"\n{line}" for line in (facts["adapter"]["text"], *facts["notes"]))
    emit(
        facts,
        as_json,
        lambda: typer.echo(
            f"{text}{claim}{evaluated}{noted}\nwatch it: fedpeft server status {facts['run']} --watch"
        ),
    )


def status(
    run: str | None = typer.Argument(None, help="Name of the run; none: all runs."),
    watch: bool = typer.Option(False, "--watch", help="Show it live until it has ended."),
    home: Path | None = HOME_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Show the runs, or one run with its nodes, bytes, loss and epsilon."""
    from fedpeft_server.service.run_view import read_view
    from fedpeft_server.service.run_view import watch as follow
    from fedpeft_server.service.server_home import is_up

    opened = _open(home)
    if run is None and watch:
        run = _newest(opened)
    folders = [opened.run(run)] if run is not None else opened.run_folders()
    if watch and not as_json:
        follow(opened, folders[0])
        return
    views = [read_view(opened, folder) for folder in folders]
    service = is_up(opened)
    facts: dict[str, Any] = {"service": service, "runs": [view.as_json() for view in views]}
    emit(facts, as_json, lambda: _show(views, service, single=run is not None))


def _newest(home: ServerHome) -> str:
    from fedpeft.errors import RunError

    if not (folders := home.run_folders()):
        raise RunError("there is no run yet; 'fedpeft server submit CONFIG' starts one")
    return folders[-1].name


def _show(views: list[RunView], service: bool, single: bool) -> None:
    from fedpeft.cli.output import console, quantity
    from fedpeft_server.service.run_view import render

    if not service:
        typer.echo("the service is down; 'fedpeft server up' starts it")
    if single:
        console().print(render(views[0], time.time()))
        return
    rows = [
        (
            view.name,
            view.status.state,
            f"{view.rounds}/{view.planned}",
            quantity(view.bytes_up + view.bytes_down),
            shown(view.epsilon),
            view.status.cause or "-",
        )
        for view in views
    ]
    table("runs", ("run", "state", "rounds", "bytes", "epsilon", "cause"), rows)


def stop(run: str = RUN, home: Path | None = HOME_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Ask a run to stop; what it has learned so far stays in its directory."""
    from fedpeft.runstore import write_atomic
    from fedpeft_server.service.server_home import ENDED, read_status

    opened = _open(home)
    folder = opened.run(run)
    state = read_status(folder).state
    if state not in ENDED:
        opened.record("stop", run=run)
        write_atomic(folder / "stop", b"")
    text = f"{run} has ended already: {state}" if state in ENDED else f"{run} stops"
    emit({"run": run, "state": state, "asked": state not in ENDED}, as_json, lambda: typer.echo(text))


def doctor(home: Path | None = HOME_OPTION, as_json: bool = JSON_OPTION) -> None:
    """Check ports, certificates, key modes, disk and versions; exit code 1 if something is wrong."""
    from fedpeft_server.cli.doctor import examine

    findings = examine(_open(home))
    facts = {
        "good": all(finding.good for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }

    def show() -> None:
        for finding in findings:
            typer.echo(f"{'ok   ' if finding.good else 'WRONG'} {finding.what}: {finding.text}")

    emit(facts, as_json, show)
    if not facts["good"]:
        raise typer.Exit(1)

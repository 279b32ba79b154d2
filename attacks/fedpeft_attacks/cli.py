"""``fedpeft audit``: attack a run's updates and write the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.errors import AuditError

if TYPE_CHECKING:
    from fedpeft_attacks.findings import Report

EXIT_LEAK = 10
"""Exit code of ``--fail-on-leak`` when something that leaves a node leaks."""


def register(app: typer.Typer) -> None:
    """Add the ``audit`` command."""
    app.command("audit")(audit)


def audit(
    run_dir: Path | None = typer.Argument(None, help="Run directory."),
    attacks: str | None = typer.Option(
        None, "--attacks", help="Names, separated by commas; default: as configured."
    ),
    out: Path | None = typer.Option(None, "--out", help="Folder of the report; default: RUN_DIR/audit."),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON schema of report.json and stop."),
    fail_on_leak: bool = typer.Option(
        False, "--fail-on-leak", help="Exit with 10 if what leaves a node leaks."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Attack a run's updates stage by stage; writes report.json and report.html.

    Exit codes: 0 done, 8 not a run directory, 9 nothing to attack, 10 a leak with --fail-on-leak.
    """
    if schema:
        from fedpeft_attacks.findings import Report

        typer.echo(json.dumps(Report.model_json_schema(), indent=2))
        return
    if run_dir is None:
        raise AuditError("which run? give its directory: fedpeft audit runs/embedded")
    names = None if attacks is None else [name.strip() for name in attacks.split(",") if name.strip()]

    from fedpeft_attacks.suite import audit_run

    report = audit_run(run_dir, names, out, None if as_json else _progress)
    folder = out or run_dir / "audit"
    emit(report.model_dump(mode="json"), as_json, lambda: _show(report, folder))
    if fail_on_leak and report.leaks:
        raise typer.Exit(EXIT_LEAK)


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def _show(report: Report, folder: Path) -> None:
    from fedpeft_attacks.page import percent

    rows = [
        (
            f"{finding.stage} · {finding.attack}",
            percent(finding.value),
            percent(finding.baselines.best if finding.baselines else None),
            percent(finding.rare.value if finding.rare else None),
            percent(finding.rare.baselines.best if finding.rare else None),
            percent(finding.power.batch if finding.power else None),
            finding.verdict,
        )
        for finding in report.findings
    ]
    columns = ("stage · attack", "recovered", "baseline", "rare", "baseline", "undefended", "verdict")
    table("What an attacker reads", columns, rows)
    typer.echo(f"{report.summary}\n{report.claim.text}\nreport: {folder / 'report.html'}")

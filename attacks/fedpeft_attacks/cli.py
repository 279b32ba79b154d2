"""``fedpeft audit``: attack a run's updates and write the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.cli.show_progress import progress
from fedpeft.errors import AuditError

if TYPE_CHECKING:
    from fedpeft_attacks.results.findings import Finding, Report

EXIT_LEAK = 10
"""Exit code of ``--fail-on-leak`` when something that leaves a node leaks."""

EXIT_DIFFERENT = 1
"""Exit code of ``audit compare`` when two reports differ in a verdict or in work."""

EXIT_UNFINISHED = 11
"""Exit code of ``--fail-on-leak`` when no leak was found, but the safety stop ended an attack."""


class _RunIsTheDefault(TyperGroup):
    """A group that takes what names none of its commands as arguments of its first, ``run``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the default command before its arguments."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


def register(app: typer.Typer) -> None:
    """Add ``audit RUN`` and ``audit compare A B``."""
    group = typer.Typer(cls=_RunIsTheDefault, help="Attack a run's updates; compare two reports.")
    group.command("run")(audit)
    group.command("compare")(compare)
    app.add_typer(group, name="audit")


def audit(
    run_dir: Path | None = typer.Argument(None, help="Run directory, or a node's home of a deployed run."),
    attacks: str | None = typer.Option(
        None, "--attacks", help="Names, separated by commas; default: as configured."
    ),
    out: Path | None = typer.Option(None, "--out", help="Folder of the report; default: RUN_DIR/audit."),
    own_copy: bool = typer.Option(
        False, "--own-copy", help="Keep recovered text, for the organisation itself; default: redacted."
    ),
    sign_with: Path | None = typer.Option(
        None, "--sign-with", help="Folder of the node or coordinator whose key signs the report."
    ),
    verify: Path | None = typer.Option(
        None, "--verify", help="Check the signed report in this folder and stop."
    ),
    key: str | None = typer.Option(
        None, "--key", help="With --verify: the public key that must have signed."
    ),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON schema of report.json and stop."),
    fail_on_leak: bool = typer.Option(
        False, "--fail-on-leak", help="Exit with 10 if what leaves a node leaks, 11 if that was not finished."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Attack a run's updates stage by stage; writes report.json, report.html and model-card.md.

    `fedpeft audit RUN_DIR` is short for `fedpeft audit run RUN_DIR`; `fedpeft audit compare A B` compares two
    reports. A run directory called run or compare is written ./run or ./compare.

    Exit codes: 0 done, 8 not a run directory, 9 nothing to attack or a signature that does not hold, 10 a
    leak with --fail-on-leak, 11 none with --fail-on-leak, but an attack that the safety stop ended.
    """
    if schema:
        from fedpeft_attacks.results.findings import Report

        typer.echo(json.dumps(Report.model_json_schema(), indent=2))
        return
    if verify is not None:
        _verify(verify, key, as_json)
        return
    if run_dir is None:
        raise AuditError("which run? give its directory: fedpeft audit runs/embedded")
    names = None if attacks is None else [name.strip() for name in attacks.split(",") if name.strip()]

    from fedpeft_attacks import audit_suite
    from fedpeft_attacks.report.assemble import Delivery
    from fedpeft_attacks.report.node_home import HOME, audit_home

    delivery = Delivery(own_copy, sign_with)
    with progress(quiet=as_json, to_stderr=True) as say:
        if (run_dir / HOME).is_file():
            report = audit_home(run_dir, out, delivery)
        else:
            report = audit_suite.audit(run_dir, names, out, say, delivery)
    folder = out or run_dir / "audit"
    emit(report.model_dump(mode="json"), as_json, lambda: _show(report, folder))
    if fail_on_leak and report.leaks:
        raise typer.Exit(EXIT_LEAK)
    if fail_on_leak and not report.is_finished:
        raise typer.Exit(EXIT_UNFINISHED)


def compare(
    first: Path = typer.Argument(help="Run directory, or folder of a report."),
    second: Path = typer.Argument(help="The other one."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare two reports: answers, settings that differ, verdicts, figures with their intervals.

    Exit codes: 0 the same verdicts and work counts, 1 others, 9 no report there.
    """
    from dataclasses import asdict

    from fedpeft_attacks.report.compare import compare as beside
    from fedpeft_attacks.report.compare import read_report

    comparison = beside(read_report(first), read_report(second))
    names = (str(first), str(second))

    def show() -> None:
        table("Answers", ("question", *names), [(row[0], *row[2:]) for row in comparison.risks])
        settings = [(row[0], *row[2:]) for row in comparison.settings] or [("none", "", "")]
        table("Settings that differ", ("setting", *names), settings)
        table("Verdicts and work counts that differ", ("about", "what", *names), comparison.differences)
        table("Figures that differ", ("about", "what", *names), comparison.figures)
        typer.echo(
            f"{comparison.same} verdicts and work counts are the same, {len(comparison.differences)} differ; "
            f"figures and powers differ by {comparison.largest:.4f} at most"
        )

    emit(asdict(comparison), as_json, show)
    if comparison.differences:
        raise typer.Exit(EXIT_DIFFERENT)


def _verify(folder: Path, key: str | None, as_json: bool) -> None:
    from fedpeft_attacks.report.signing import FILES, verify_report

    signer = verify_report(folder, key)
    known = "the key that you gave" if key is not None else "compare it with the key that its owner gave you"
    lines = f"{', '.join(FILES)}: unchanged since they were signed\nsigned by {signer} ({known})"
    emit({"signed_by": signer, "files": list(FILES)}, as_json, lambda: typer.echo(lines))


def _show(report: Report, folder: Path) -> None:
    from fedpeft_attacks.report.risks import headline
    from fedpeft_attacks.report.summaries import epsilon_words

    columns = ("attack · stage", "what", "recovered", "without it", "rare, secret", "without it", "verdict")
    table("What an attacker reads", columns, [_row(finding) for finding in report.findings])
    typer.echo(headline(report.verdict, report.risks))
    for risk in report.risks:
        typer.echo(f"  {risk.question} {risk.label}\n    {risk.answer}")
    if report.changes:
        typer.echo("what to change, the most effective first")
        for change in report.changes:
            typer.echo(f"  {change.setting}: {change.effect}")
    typer.echo(f"{report.claim.text} {epsilon_words(report.epsilon)}")
    for check in report.epsilon:
        claimed = "no claim" if check.claimed is None else f"claimed {check.claimed:.2f}"
        bound = "no bound" if check.lower is None else f"at least {check.lower:.2f}"
        typer.echo(f"  {check.method}: {bound}, {claimed}: {check.reason}")
    typer.echo(f"report: {folder / 'report.html'} ({'signed' if report.signature else 'not signed'})")


def _row(finding: Finding) -> tuple[str, ...]:
    """Headline and the first figure of rare tokens or personal data, each beside its best baseline."""
    from fedpeft_attacks.results.measures import RARE, SECRETS, Measure, written

    def shown(figure: Measure | None) -> tuple[str, str]:
        if figure is None:
            return "–", "–"
        return written(figure.value, figure.unit), written(figure.baselines.best, figure.unit)

    first = finding.headline
    precious = (figure for figure in finding.measures[1:] if figure.name in (RARE, SECRETS))
    what = "–" if first is None else first.name
    name = f"{finding.attack} · {finding.stage}"
    return (name, what, *shown(first), *shown(next(precious, None)), finding.label)

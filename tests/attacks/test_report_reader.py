"""Ten questions that a privacy officer asks: their answers stand on the first two printed pages of a report.

The report is one as the demo makes it: membership leaks, nothing else does, no epsilon is claimed.
"""

import html
import re
import shutil
import subprocess

import pytest

from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.report.html import render
from fedpeft_attacks.report.risks import risks_of
from fedpeft_attacks.report.summaries import overall, threats
from fedpeft_attacks.results.measures import TOKENS, Baselines, Measure, Strength
from fedpeft_attacks.results.verdicts import Subject, finding_of

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

QUESTIONS = {
    "Which run, which base, whose updates, which rounds?": r"run “.+?”.+on the base .+nodes .+rounds",
    "Could somebody tell that a person's record was used?": (
        r"Could somebody tell that a person's record was used\? leaks: one organisation's envelope"
    ),
    "How well, beside guessing?": r"members of a round \d\.\d\d \(guessing 0\.50",
    "Could text be read?": r"Could text of the records be read\? not detected \(attack strength 30 %\)",
    "How strong were the attacks that found nothing?": r"With all protections off .+ recovers .+ 30 % of one",
    "Does the finished adapter remember personal data?": (
        r"Does the finished adapter remember personal data\? not detected \(attack strength not known\)"
    ),
    "Is an epsilon claimed and right?": r"Does the claimed epsilon hold\? not tested .+ claims no epsilon",
    "Who could do it?": r"coordinator leaks .+ peer leaks .+ outsider not detected",
    "What has to be changed first?": (
        r"What to change, the most effective first privacy\.unit = \"record\" .+ exchange\.secure\.enabled"
    ),
    "What was not tested, may I pass this copy on?": r"This copy redacted .+ What was not tested .+ channels",
}
"""What is asked, and the pattern of its answer in the text of the pages."""


def quiet(attack, kind, stage, role, power=None):
    """A finding whose figure is that of guessing."""
    none = Baselines(chance=0.1, prior=0.1, control=0.1)
    figure = Measure(name=TOKENS, unit="share", value=0.1, interval=(0.05, 0.15), baselines=none, count=90)
    return finding_of(Subject(attack, kind, stage, role, "lora/frozen_a"), [figure], 0.1, power)


def as_the_demo(report):
    """A report of membership with the other attacks of the demo, which find nothing."""
    power = Strength(text="no protection", shares={"the tokens of a batch": 0.7, "one record": 0.3})
    findings = [*report.findings]
    for attack, kind in (("sparse-recovery", "inversion"), ("labels", "property")):
        for place in (("envelope", "coordinator"), ("aggregate", "peer")):
            findings.append(quiet(attack, kind, *place, power))
    for attack, kind in (("prompt-extraction", "memorisation"), ("membership", "membership")):
        findings.append(quiet(attack, kind, "released", "outsider"))
    risks = risks_of(findings, (), report.claim)
    update = {"findings": tuple(findings), "risks": risks, "threats": threats(findings)}
    return report.model_copy(update=update | {"verdict": overall(findings, ())})


@pytest.fixture(scope="module")
def pages():
    """By name, what `page` makes once."""
    return {}


@pytest.fixture
def page(make_members, pages):
    """``report.html``."""
    if not pages:
        pages["demo"] = render(as_the_demo(audit(make_members(), ["update-membership"])))
    return pages["demo"]


def first_section(page):
    """The page up to the end of its first section."""
    return page[: page.index("</section>")] + "</section></main></body></html>"


def words(page):
    """Its text without tags, style and line ends."""
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_first_section_answers(page, question):
    assert re.search(QUESTIONS[question], words(first_section(page)))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_first_section_fills_at_most_two_printed_pages(page, tmp_path):
    source, paper = tmp_path / "first.html", tmp_path / "first.pdf"
    source.write_text(first_section(page), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *options, f"--print-to-pdf={paper}", "--no-pdf-header-footer", source.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert max(int(number) for number in re.findall(rb"/Count (\d+)", paper.read_bytes())) <= 2

"""``report.html`` as its readers meet it: offline, by machine, by keyboard, on paper and on a phone."""

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.report.html import TITLES, render
from fedpeft_attacks.report.model_card import model_card
from fedpeft_attacks.report.risks import risks_of
from fedpeft_attacks.report.summaries import overall, threats
from fedpeft_attacks.results.findings import Claim, Example, Report, Signature
from fedpeft_attacks.results.measures import SECRETS, SEQUENCES, Baselines, Measure, Strength
from fedpeft_attacks.results.verdicts import Audit, Bound, Subject, epsilon_check, finding_of

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "br", "link", "img", "hr", "input"}
REPORTS: dict[str, Report] = {}
PAGES: dict[int, str] = {}


def figure(value, low, unit="share", name=SEQUENCES, chance=0.0):
    interval, told = (low, min(value + 0.1, 1.0)), Baselines(chance=chance, prior=chance, control=None)
    return Measure(name=name, unit=unit, value=value, interval=interval, baselines=told, count=12)


def filled_in(report):
    """A real report with what attacks of other kinds would add."""
    power = Strength(text="the adapter without protection", shares={"the canaries": 0.9})
    released = [
        (Subject("exposure", "memorisation", "released", "outsider", "lora"), figure(6.0, 5.0, "bits")),
        (Subject("lira", "membership", "released", "outsider", "lora"), figure(0.53, 0.49, "auc", "", 0.5)),
    ]
    sequences = figure(0.75, 0.6), figure(0.5, 0.3, name=SECRETS)
    recit = Subject("recit", "inversion", "envelope", "malicious-coordinator", "lora")
    findings = (
        *report.findings,
        finding_of(recit, sequences, 0.1, power),
        *(finding_of(subject, [one], 0.1, power) for subject, one in released),
    )
    audit = Audit("one run, f-DP", "sampler, clip, noise", "fair coins")
    checks = (epsilon_check(audit, 8.0, Bound(3.2, 0.95, 300), {"half": 1.0, "shuffle": None}),)
    claim = Claim(
        unit="record", epsilon=8.0, delta=1e-5, text="Epsilon 8 is claimed.", plan={"clip": 1.0, "grid": None}
    )
    return report.model_copy(
        update={
            "findings": findings,
            "risks": risks_of(findings, checks, claim),
            "threats": threats(findings),
            "verdict": overall(findings, checks),
            "epsilon": checks,
            "claim": claim,
            "own_copy": True,
            "examples": (
                Example(stage="envelope", attack="recit", recovered="<i>Ann</i> □", truth="Ann & Bo"),
            ),
            "signature": Signature(signer="hospital", key="ab" * 32),
        }
    )


@pytest.fixture
def reports(make_run):
    """The report of a small real run, made once; as it was found, and with findings of every kind."""
    if not REPORTS:
        found = audit(make_run({"aggregation": "naive", "rank": 8}, batch=2))
        REPORTS.update({"found": found, "full": filled_in(found)})
    return REPORTS


@pytest.fixture(params=["found", "full"])
def report(reports, request):
    """Each of them."""
    return reports[request.param]


def rendered(report):
    """Its page, drawn once."""
    if id(report) not in PAGES:
        PAGES[id(report)] = render(report)
    return PAGES[id(report)]


class Page(HTMLParser):
    """Elements in order, each with its parents, attributes and text; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "parents": list(self.open)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": "", "parents": list(self.open)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]

    def within(self, outer, *tags):
        return [one for one in self.all(*tags) if any(parent is outer for parent in one["parents"])]


def test_the_page_loads_nothing_and_runs_nothing(report):
    text = rendered(report)
    page = Page(text)
    assert not page.all("script", "link", "iframe", "object", "embed", "img", "form")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    links = [one["attrs"]["href"] for one in page.all("a")]
    ids = {one["attrs"].get("id") for one in page.elements}
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    assert all(name not in one["attrs"] for one in page.elements for name in ("onclick", "onload", "src"))


def test_ids_are_unique_and_every_label_has_its_target(report):
    page = Page(rendered(report))
    ids = [one["attrs"]["id"] for one in page.elements if "id" in one["attrs"]]
    assert len(ids) == len(set(ids))
    for one in page.elements:
        assert set(one["attrs"].get("aria-labelledby", "").split()) <= set(ids)


def test_headings_are_in_order(report):
    page = Page(rendered(report))
    levels = [int(one["tag"][1]) for one in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [one["attrs"]["id"] for one in page.all("section")] == list(TITLES)
    assert page.all("html")[0]["attrs"]["lang"] == "en"


def test_tables_have_captions_scopes_and_a_box_that_scrolls_by_keyboard(report):
    page = Page(rendered(report))
    assert page.all("table")
    for table in page.all("table"):
        assert [caption["text"].strip() != "" for caption in page.within(table, "caption")] == [True]
        heads = page.within(table, "th")
        assert heads
        assert {head["attrs"].get("scope") for head in heads} <= {"col", "row", "rowgroup"}
        box = table["parents"][-1]["attrs"]
        assert (box["class"], box["tabindex"], box["role"]) == ("scroll", "0", "region")
        assert box["aria-label"]


def _widths(page, table):
    """Cells of each row, those that reach down from rows above included."""
    reach = {}
    for row, element in enumerate(page.within(table, "tr")):
        for cell in page.within(element, "th", "td"):
            width = int(cell["attrs"].get("colspan", 1))
            for below in range(int(cell["attrs"].get("rowspan", 1))):
                reach[row + below] = reach.get(row + below, 0) + width
    return set(reach.values())


def test_every_row_of_a_table_is_as_wide_as_its_head(report):
    page = Page(rendered(report))
    assert all(len(_widths(page, table)) == 1 for table in page.all("table"))


def test_pictures_have_title_and_description_and_their_text_is_text(report):
    page = Page(rendered(report))
    pictures = page.all("svg")
    assert len(pictures) == 1
    for picture in pictures:
        assert picture["attrs"]["role"] == "img"
        assert [one["text"].strip() != "" for one in page.within(picture, "title", "desc")] == [True, True]
        words = {one["text"].strip() for one in page.within(picture, "text")}
        assert {"envelope", "sparse-recovery", "tokens"} <= words


def _variables(style):
    """Colours of light and dark by name."""
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in blocks)
    return light, {**light, **dark}


def _luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_is_enough_in_light_and_dark(report, theme):
    style = Page(rendered(report)).all("style")[0]["text"]
    colours = _variables(style)[theme]
    for ground in ("page", "card"):
        for name in ("ink", "soft", "leak", "calm", "open", "link"):
            bright, dim = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (name, ground)
    assert set(re.findall(r"#[0-9a-f]{6}\b", rendered(report))) <= set(re.findall(r"#[0-9a-f]{6}\b", style))


def test_names_and_texts_of_the_run_are_escaped(report):
    page = render(report.model_copy(update={"run": "<b>&", "nodes": ("<i>",)}))
    assert "<b>&" not in page
    assert "<i>" not in page


def test_the_page_says_what_it_has_and_what_it_lacks(reports):
    found, full = (html.unescape(rendered(one)) for one in reports.values())
    assert "Not tested in this audit: nothing is known of it." in found
    assert "Redacted." in found
    assert "Not signed." in found
    assert "Ann & Bo" in full
    assert "at least 3.20" in full
    assert "1.00 bits" not in full
    for words in ("6.0 bits", "0.49–0.63", "half: 100 % of runs", "of an area under the curve"):
        assert words in full


PERSONS = ("Purposes of the processing", "Legal ground", "Categories of personal data", "Author", "Date")


def test_pages_to_complete_hold_what_the_run_knows_and_leave_the_rest_empty(report):
    dpia, nist = report.assessments
    asked = {entry.asked: entry for page in (dpia, nist) for part in page.chapters for entry in part.entries}
    assert all(asked[name].answer is None for name in PERSONS)
    assert report.base in asked["What is done with the data"].answer
    assert str(report.settings["federation.rounds"]) in asked["Horizon of composition"].answer
    assert asked["Unit of privacy"].answer == "none"
    assert all(entry.see in {None, *TITLES} for entry in asked.values())
    ratings = ("likelihood_before", "severity_before", "likelihood_after", "severity_after", "residual")
    assert [risk.name for risk in dpia.risks] == ["membership", "text", "labels", "memory"]
    assert all(getattr(risk, name) is None for risk in dpia.risks for name in ratings)
    page = Page(rendered(report))
    blanks = [one for one in page.all("dd") if one["attrs"].get("class") == "blank"]
    empty = sum(entry.answer is None for entry in asked.values())
    assert len(blanks) == empty + len(ratings) * len(dpia.risks)


def test_the_model_card_has_the_same_figures_and_no_text(report):
    card = model_card(report)
    assert all(risk.label in card and risk.answer in card for risk in report.risks)
    assert all(change.setting in card for change in report.changes)
    assert "Ann" not in card
    assert ("gradient" not in card) and ("| envelope | tokens |" in card)
    assert all(line in card for line in report.not_tested)
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} <= {3, 4, 8}


def browse(folder, *options):
    """Run the browser without a network of its own; returns what it printed."""
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    base = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [*base, *quiet, profile, *options], capture_output=True, text=True, timeout=3600, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_opens_it_from_disk_without_a_word_and_prints_it(report, tmp_path):
    path, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    path.write_text(rendered(report))
    dom, log = browse(tmp_path, "--enable-logging=stderr", "--dump-dom", path.as_uri())
    assert "CONSOLE" not in log
    assert Page(dom).all("h1")[0]["text"] == Page(rendered(report)).all("h1")[0]["text"]
    browse(tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", path.as_uri())
    pages = max(int(number) for number in re.findall(rb"/Count (\d+)", paper.read_bytes()))
    assert pages >= 3
    browse(tmp_path, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1280,900", path.as_uri())
    assert (tmp_path / "shot.png").stat().st_size > 20_000


MEASURE = """<script>
frame.onload = () => {
  const page = frame.contentDocument, boxes = [...page.querySelectorAll(".scroll")];
  const widths = (one) => [one.clientWidth, one.scrollWidth];
  document.body.dataset.widths = JSON.stringify([page.documentElement, ...boxes].map(widths));
};
</script>"""


def widths(folder, page, width):
    """What is seen and what there is, in pixels: of the page, and of each box that may scroll."""
    style = f"border:0;width:{width}px;height:800px"
    frame = f'<iframe id="frame" style="{style}" srcdoc="{html.escape(page)}"></iframe>'
    (folder / "frame.html").write_text(f"<!doctype html><body>{frame}{MEASURE}</body>")
    dom, _ = browse(folder, "--window-size=1400,900", "--dump-dom", (folder / "frame.html").as_uri())
    return json.loads(html.unescape(re.search(r'data-widths="([^"]*)"', dom).group(1)))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(report, tmp_path, width):
    (seen, there), *_ = widths(tmp_path, rendered(report), width)
    assert seen == width
    assert there <= seen


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_no_table_is_cut_on_paper(report, tmp_path):
    """At the width of A4 within its margins, 182 mm, every table fits its box."""
    printed = rendered(report).replace("@media print", "@media all")
    assert all(there <= seen for seen, there in widths(tmp_path, printed, 688))

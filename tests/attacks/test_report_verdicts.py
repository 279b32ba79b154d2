"""The rule for leaks in every unit, measured epsilons, and what a report says in plain words."""

import pytest

from fedpeft.config import Config
from fedpeft_attacks.report.remedies import changes_of
from fedpeft_attacks.report.risks import headline, risks_of, summary
from fedpeft_attacks.report.stage_table import filled, ladder
from fedpeft_attacks.report.summaries import epsilon_words, overall, threats
from fedpeft_attacks.results.findings import Claim, Finding
from fedpeft_attacks.results.measures import (
    SECRETS,
    SEQUENCES,
    TOKENS,
    Baselines,
    Measure,
    Strength,
    spanned,
    written,
)
from fedpeft_attacks.results.token_scores import Counts, average, measure
from fedpeft_attacks.results.verdicts import Audit, Bound, Subject, epsilon_check, finding_of, thresholds
from fedpeft_attacks.results.words import ORDER, verdict_words, worst

ENVELOPE = Subject("recit", "inversion", "envelope", "coordinator", "lora/naive")


def figure(value, low, unit="share", name=TOKENS, **baselines):
    told = Baselines(**{"chance": 0.0, **baselines})
    return Measure(name=name, unit=unit, value=value, interval=(low, value), baselines=told, count=20)


@pytest.mark.parametrize(
    ("measure", "leaks"),
    [
        (figure(0.55, 0.45, prior=0.4, control=0.3), True),
        (figure(0.55, 0.35, prior=0.4), False),  # the interval reaches the baseline
        (figure(0.45, 0.42, prior=0.4), False),  # below the threshold
        (figure(0.55, 0.5, prior=0.2, control=0.48), False),  # other data do it
        (figure(0.56, 0.53, "auc", chance=0.5), True),  # half the threshold for an area
        (figure(0.54, 0.53, "auc", chance=0.5), False),
        (figure(3.0, 2.2, "bits", chance=1.44), True),
        (figure(2.2, 2.1, "bits", chance=1.44), False),  # less than a bit
        (figure(4.2, 4.1, "epsilon", chance=4.0), True),  # anything above the claim
    ],
)
def test_one_rule_judges_every_unit(measure, leaks):
    found = finding_of(ENVELOPE, [measure], threshold=0.1)
    assert (found.verdict == "leaks") is leaks
    assert (found.value, found.interval, found.baselines) == (
        measure.value,
        measure.interval,
        measure.baselines,
    )


def test_the_threshold_scales_by_unit():
    assert thresholds(0.2) == {"share": 0.2, "auc": 0.1, "bits": 2.0, "epsilon": 0.0}


def test_only_the_headline_is_judged_and_nothing_is_not_applicable():
    quiet, loud = figure(0.1, 0.0), figure(0.9, 0.8, name=SECRETS)
    assert finding_of(ENVELOPE, [quiet, loud], 0.1).verdict == "not detected"
    silent = finding_of(ENVELOPE, [], 0.1, reason="it needs records")
    assert (silent.verdict, silent.reason, silent.value) == ("not applicable", "it needs records", None)


def test_a_finding_repeats_its_headline_and_nothing_else():
    facts = finding_of(ENVELOPE, [figure(0.5, 0.4)], 0.1).model_dump()
    assert Finding.model_validate(facts).headline.value == 0.5
    with pytest.raises(ValueError, match="first measure"):
        Finding.model_validate(facts | {"value": 0.1})


def test_counts_of_records_are_measured_as_tokens_are():
    found = measure([Counts(4, 4, 0.0, 0, 0), Counts(4, 3, 0.0, 0, 0)], SEQUENCES)
    assert (found.name, found.value, found.count) == (SEQUENCES, 7 / 8, 8)
    assert found.interval[0] < 0.75 <= found.value <= found.interval[1]


def test_averages_have_a_reproducible_interval_and_few_bound_nothing():
    scores = [0.2, 0.4, 0.6, 0.8] * 10
    found = average("ROUGE-L", scores, Baselines(chance=0.1))
    assert found == average("ROUGE-L", scores, Baselines(chance=0.1))
    assert found.value == pytest.approx(0.5)
    assert 0.4 < found.interval[0] < 0.5 < found.interval[1] < 0.6
    assert average("ROUGE-L", [1.0, 1.0], Baselines(chance=0.0)).interval == (0.0, 1.0)
    assert average("ROUGE-L", [], Baselines(chance=0.0)) is None


def check(lower, claimed=8.0, contradicted=None):
    audit, power = Audit("one run", "sampler and noise"), {"noise halved": 0.9, "shuffle": None}
    return epsilon_check(audit, claimed, Bound(lower, 0.95, 100), power, contradicted)


def test_a_bound_above_the_claim_is_a_leak_whatever_the_attacks_say():
    quiet = finding_of(ENVELOPE, [figure(0.1, 0.0)], 0.1)
    assert [check(lower).verdict for lower in (3.0, 8.5)] == ["not detected", "leaks"]
    assert check(3.0, None).verdict == "not applicable"
    assert overall([quiet], [check(3.0)]) == "not detected"
    assert overall([quiet], [check(8.5)]) == "leaks"
    assert overall([], [check(3.0)]) == "not tested"
    told = summary(risks_of([quiet], [check(8.5)], CLAIM), ())
    assert "No: what was measured contradicts the claim of epsilon 8" in told
    assert "8.50" in told
    assert "contradicted by: one run" in told
    assert epsilon_words([check(3.0), check(None)]) == (
        "Epsilon is at least 3.00 (one run, 95 % confidence); 8.00 is claimed."
    )
    assert "no epsilon is claimed" in epsilon_words([check(3.0, None)])


def test_an_audit_may_bring_its_own_test_and_no_bound():
    assert check(8.5, contradicted=False).verdict == "not detected"
    assert check(None, contradicted=True).verdict == "leaks"
    assert check(None).verdict == "not detected"
    assert overall([], [check(None, contradicted=True)]) == "leaks"


def test_an_insider_does_not_make_the_verdict_of_the_run():
    inside = finding_of(Subject("span", "inversion", "gradient", "insider", "lora"), [figure(0.9, 0.8)], 0.1)
    outside = finding_of(ENVELOPE, [figure(0.1, 0.0)], 0.1)
    assert overall([inside, outside], []) == "not detected"
    verdicts = {one.role: one.verdict for one in threats([inside, outside])}
    assert verdicts == {
        "insider": "leaks",
        "coordinator": "not detected",
        "malicious-coordinator": "not tested",
        "peer": "not tested",
        "outsider": "not tested",
    }


def test_the_ladder_keeps_the_order_of_the_stages_and_leaves_membership_out():
    def found(stage, kind, *measures):
        return finding_of(Subject("a", kind, stage, "coordinator", "lora"), measures, 0.1)

    findings = [
        found("envelope", "inversion", figure(0.5, 0.4), figure(0.2, 0.1, name=SECRETS)),
        found("gradient", "inversion"),
        found("released", "membership", figure(0.6, 0.55, "auc", "area under the curve", chance=0.5)),
    ]
    steps = ladder(findings, ["gradient", "envelope"])
    assert [step.stage for step in steps] == ["gradient", "envelope"]
    assert filled(steps) == (TOKENS, SECRETS)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.123, "share", "12 %"), (2.26, "bits", "2.3 bits"), (0.5, "auc", "0.50"), (8, "epsilon", "8.00")],
)
def test_figures_are_written_by_unit(value, unit, text):
    assert written(value, unit) == text
    assert written(None, unit) == "–"


def test_intervals_name_their_unit_once():
    assert spanned((0.1, 0.25)) == "10–25 %"
    assert spanned((1.0, 2.0), "bits") == "1.0–2.0 bits"
    assert spanned((0.48, 0.61), "auc") == "0.48–0.61"


MEMBERS = Subject("update-membership", "membership", "envelope", "coordinator", "lora/frozen_a")
CLAIM = Claim(unit="record", epsilon=8.0, delta=1e-5, text="Epsilon 8 is claimed.", plan={})
NONE = Claim(unit="none", epsilon=None, delta=None, text="None is claimed.", plan=None)
POWER = Strength(text="no protection", shares={"a batch": 0.9, "one record": 0.3, "unknown": None})


def members(value=0.7):
    return finding_of(MEMBERS, [figure(value, value - 0.04, "auc", "members of a round", chance=0.5)], 0.1)


def quiet(stage="envelope", role="coordinator", attack="span", power=POWER, kind="inversion"):
    subject = Subject(attack, kind, stage, role, "lora")
    return finding_of(subject, [figure(0.1, 0.0)], 0.1, power)


def told(findings, checks=(), claim=NONE):
    return {risk.name: risk for risk in risks_of(findings, checks, claim)}


def test_the_head_names_what_leaks():
    loud = finding_of(ENVELOPE, [figure(0.9, 0.8)], 0.1)
    cases = [
        ([quiet(), members()], [], "Leaks membership"),
        ([loud, members()], [], "Leaks membership and text"),
        ([members()], [check(8.5)], "Leaks membership and more than the claimed epsilon"),
        ([quiet()], [], "Not detected (attack strength 30 %)"),
        ([quiet(power=None)], [], "Not detected (attack strength not known)"),
        ([], [], "Not tested"),
    ]
    for findings, checks, head in cases:
        risks = risks_of(findings, checks, CLAIM)
        assert headline(overall(findings, checks), risks) == head


@pytest.mark.parametrize("worse", ORDER)
def test_a_risk_is_as_bad_as_the_worst_of_its_findings(worse):
    """And of the places that have to be tested: silence in the envelope says nothing of the mean."""
    mean = quiet("aggregate", "peer")
    for better in ORDER[ORDER.index(worse) :]:
        findings = [mean, *(quiet().model_copy(update={"verdict": verdict}) for verdict in (better, worse))]
        assert told(findings)["text"].verdict == worse
    alone = told([quiet()])["text"]
    assert (alone.verdict, alone.parts[0].verdict) == ("not tested", "not detected")
    assert (
        alone.label
        == "not tested: the mean of all organisations; elsewhere not detected (attack strength 30 %)"
    )


def test_an_attack_that_does_not_apply_decides_nothing_where_others_were_tried():
    beside = quiet("aggregate", "peer", "sequences").model_copy(update={"verdict": "not applicable"})
    assert told([quiet(), quiet("aggregate", "peer"), beside])["text"].verdict == "not detected"
    assert told([quiet(), beside])["text"].verdict == "not tested"


def test_silence_states_the_hardest_trial_of_the_strongest_attack():
    weak = quiet(attack="weak", power=Strength(text="no protection", shares={"a batch": 0.05}))
    part = told([weak, quiet()])["text"].parts[0]
    assert (part.strength, part.label) == (0.3, "not detected (attack strength 30 %)")
    assert "The attack span" in part.text and "30 % of one record" in part.text


def test_an_insider_has_no_part_in_a_risk():
    inside = finding_of(Subject("span", "inversion", "gradient", "insider", "lora"), [figure(0.9, 0.8)], 0.1)
    assert told([inside, quiet()])["text"].verdict == "not tested"


@pytest.mark.parametrize(
    ("checks", "claim", "verdict", "words"),
    [
        ([], NONE, "not tested", "claims no epsilon"),
        ([], CLAIM, "not tested", "No lower bound was measured"),
        ([check(3.0)], CLAIM, "not detected", "does not contradict the claim of epsilon 8"),
        ([check(8.5)], CLAIM, "leaks", "contradicts the claim of epsilon 8"),
    ],
)
def test_the_claim_is_a_risk_of_its_own(checks, claim, verdict, words):
    risk = told([], checks, claim)["epsilon"]
    assert risk.verdict == verdict and words in risk.answer
    assert risk.label == ("not detected (attack strength 90 %)" if verdict == "not detected" else verdict)


def test_what_to_change_is_what_the_run_has_not_set():
    def settings(findings, **sections):
        config = Config.model_validate(sections)
        return [change.setting for change in changes_of(config, risks_of(findings, (), NONE))]

    tried = [quiet(), quiet("aggregate", "peer")]
    noise, sums = settings([*tried, members()])[:2]
    assert "privacy.unit" in noise and "exchange.secure.enabled" in sums
    claimed = settings([*tried, members()], privacy={"unit": "record", "epsilon": 8.0, "public_records": 100})
    assert "privacy.epsilon, smaller" in claimed[0]
    assert "adapter.skip_layers = [0]" not in settings([members()])
    loud = finding_of(ENVELOPE, [figure(0.9, 0.8)], 0.1)
    assert "adapter.skip_layers = [0]" in settings([loud], adapter={"skip_layers": []})
    assert "fedpeft audit RUN --attacks update-membership,released" in settings(tried)


def test_old_words_are_shown_as_the_new_ones():
    assert (
        verdict_words("clean")
        == verdict_words("no leak detected")
        == "not detected (attack strength not known)"
    )
    assert verdict_words("masked") == "not tested (masked)" and worst(["no leak detected"]) == "not detected"

"""A deployment heals from whatever happens to it, without an operator."""

import pytest
from campaign import Campaign, hostile_replies, hostile_wrong, plan_of, report, scene
from faults import CATALOGUE, SHORT


def check(campaign):
    wrong = [one for one in campaign.outcomes if one.wrong or one.lost]
    assert not wrong, wrong


def test_a_run_survives_its_node_its_coordinator_and_its_link(tmp_path):
    with scene(tmp_path, seed=1, hostile=False, plain=True) as made:
        campaign = Campaign(made, rounds=12)
        campaign.play([fault for fault in CATALOGUE if fault.name in SHORT])
        check(campaign)
        assert len(campaign.runs) >= 1


@pytest.mark.faults
def test_the_whole_campaign(tmp_path, capsys):
    with scene(tmp_path, seed=0) as made:
        campaign = Campaign(made)
        try:
            campaign.play(plan_of(0, sum(fault.times for fault in CATALOGUE)))
        finally:
            with capsys.disabled():
                print("\n" + report(made, campaign))
        assert len(campaign.outcomes) + hostile_replies(made, campaign).hostile >= 200
        assert hostile_wrong(made, campaign) == []
        check(campaign)

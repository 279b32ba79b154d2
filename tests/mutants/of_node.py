"""Mutants of a node's own checks: what a coordinator with good keys may ask of it, and what it is told.

Numbers from 301 on: they are no bugs of the table in docs/privacy-bugs.md.
"""

from __future__ import annotations

from harness import Mutant

TASKS, DESK, ROUND = (
    "fedpeft_clients.rounds.handlers",
    "fedpeft_clients.rounds.node_context",
    "fedpeft_clients.rounds.local_round",
)
TERMS, TOLD, GATE = (
    "fedpeft_clients.governance.run_approval",
    "fedpeft_clients.rounds.ledger_view",
    "fedpeft_clients.outbox.gate",
)
STEP, TOKENS = "fedpeft.training.dp.dpsgd", "fedpeft.data.tokens"
READ = "fedpeft.data.table_files"

ORDERS, SILENCE = "clients/test_orders.py::", "clients/test_silence.py::"
BINDING, OFFERS = "clients/test_binding.py::", "clients/test_terms.py::"
LEAVING = "clients/test_gate.py::"

MUTANTS = (
    Mutant(
        301,
        "round 1 begins wherever the coordinator says",
        DESK,
        "if task.round == 1 and task.state != self.digest_of(self.initial()):",
        "if task.round == 0 and task.state != self.digest_of(self.initial()):",
        (ORDERS + "test_round_one_starts_from_the_agreed_adapter_and_no_other",),
    ),
    Mutant(
        329,
        "a later round begins wherever the coordinator says",
        DESK,
        "        if excess := self.bound.excess(round, state):\n",
        "        if (excess := self.bound.excess(round, state)) and round == 1:\n",
        (ORDERS + "test_a_state_that_training_cannot_reach_is_refused_before_anything_is_spent[rows]",),
    ),
    Mutant(
        302,
        "a round is trained again from every state that is sent",
        TASKS,
        "    if answer is not None and answer.digest != task.state:\n",
        "    answer = answer if answer is None or answer.digest == task.state else None\n"
        "    if answer is not None and answer.digest != task.state:\n",
        (ORDERS + "test_a_node_takes_one_state_a_round[lost0]",),
    ),
    Mutant(
        303,
        "only the newest rounds are remembered as answered",
        "fedpeft_clients.rounds.node_state",
        "return state.answer if state else sent(outbox, round)",
        "return state.answer if state else None",
        (ORDERS + "test_a_node_takes_one_state_a_round[lost1]",),
    ),
    Mutant(
        304,
        "rounds that were left out may be asked for later",
        TASKS,
        "task.round < (done := newest(home.states, home.outbox))",
        "task.round < 0 * (done := newest(home.states, home.outbox))",
        (ORDERS + "test_rounds_do_not_go_back",),
    ),
    Mutant(
        305,
        "an order may ask for fewer steps than agreed",
        TASKS,
        "if task.steps != federation.local_steps:",
        "if task.steps > federation.local_steps:",
        (ORDERS + "test_an_order_asks_for_what_was_agreed_and_nothing_else[change0-steps]",),
    ),
    Mutant(
        306,
        "an order may ask for a smaller rate than agreed",
        TASKS,
        "if task.lr != (agreed := LocalPlan.of(federation, task.round).lr):",
        "if task.lr > (agreed := LocalPlan.of(federation, task.round).lr):",
        (ORDERS + "test_an_order_asks_for_what_was_agreed_and_nothing_else[change2-rate]",),
    ),
    Mutant(
        307,
        "more rounds than agreed",
        TASKS,
        "if not 1 <= task.round <= federation.rounds:",
        "if not 1 <= task.round:",
        (ORDERS + "test_an_order_asks_for_what_was_agreed_and_nothing_else[change4-rounds]",),
    ),
    Mutant(
        308,
        "batches of an organisation follow from the run's public seed",
        ROUND,
        "if home.reproducible:",
        "if home.name:",
        (ORDERS + "test_batches_of_an_organisation_follow_from_no_seed",),
    ),
    Mutant(
        309,
        "an update is masked in a sum that was opened for another state",
        ROUND,
        "if session is not None and session.task.state != task.state:",
        "if session is not None and session.task.round != task.round:",
        (ORDERS + "test_a_secure_sum_is_of_the_state_that_is_trained_from",),
    ),
    Mutant(
        310,
        "seconds of training leave a secure sum",
        ROUND,
        'train_s=0.0 if node.home.discreet else notes["train_s"],',
        'train_s=0.0 if node.home.config.privacy.unit != "none" else notes["train_s"],',
        (ORDERS + "test_seconds_of_training_leave_only_where_single_records_may_show",),
    ),
    Mutant(
        311,
        "under DP a record that cannot be used is an error that leaves",
        ROUND,
        "faults: list[str] | None = [] if home.discreet else None",
        "faults: list[str] | None = None",
        (SILENCE + "test_a_line_that_is_no_record_counts_as_nothing[a null]",),
    ),
    Mutant(
        312,
        "a chat that the template refuses is an error that leaves",
        TOKENS,
        "        elif faults is None:\n",
        '        elif faults is None or "template" in example:\n',
        (SILENCE + "test_a_chat_that_the_template_refuses_counts_as_nothing",),
    ),
    Mutant(
        313,
        "a value that Python cannot hold ends the reading of all rows",
        READ,
        "except Exception as error:  # the error would carry the value",
        "except DataError as error:  # the error would carry the value",
        (SILENCE + "test_a_date_that_python_cannot_hold_counts_as_nothing",),
    ),
    Mutant(
        314,
        "a gradient that cannot be computed ends the step",
        STEP,
        "    except PrivacyError:\n        raise",
        "    except Exception:\n        raise",
        (SILENCE + "test_a_record_whose_gradient_cannot_be_computed_counts_as_zero",),
    ),
    Mutant(
        315,
        "one gradient that cannot be computed silences its whole batch",
        STEP,
        "if len(bounds) > 2:",
        "if len(bounds) > 2000:",
        (SILENCE + "test_a_record_whose_gradient_cannot_be_computed_counts_as_zero",),
    ),
    Mutant(
        316,
        "terms may change after they were agreed on",
        TERMS,
        '"terms": config == home.config,',
        '"terms": config.privacy == home.config.privacy,',
        (BINDING + "test_what_was_agreed_on_cannot_be_offered_otherwise",),
    ),
    Mutant(
        317,
        "the operator's word is about whatever lies there by now",
        "fedpeft_clients.governance.proposals",
        "saved.digest.startswith(terms.lower())",
        "bool(saved.digest)",
        (BINDING + "test_terms_that_were_swapped_after_they_were_shown_are_not_approved",),
    ),
    Mutant(
        318,
        "so few digits name the terms that a coordinator finds two that share them",
        "fedpeft_clients.governance.proposals",
        "LEAST_DIGITS = 32",
        "LEAST_DIGITS = 12",
        (BINDING + "test_nothing_is_approved_unseen[short]",),
    ),
    Mutant(
        319,
        "offers of one coordinator use up the room of all",
        TERMS,
        "proposals = [known for known in offers(link.organisation) if known.coordinator == coordinator]",
        "proposals = list(offers(link.organisation))",
        (BINDING + "test_offers_of_one_coordinator_do_not_block_another",),
    ),
    Mutant(
        320,
        "a coordinator is told the epsilon that all of them have spent",
        TOLD,
        "charges = budget.charges(of_run(ledger.entries(), run), lineage)",
        "charges = budget.charges(ledger.entries(), lineage)",
        (BINDING + "test_one_coordinator_is_not_told_of_another",),
    ),
    Mutant(
        321,
        "the number of a ledger's entry counts everybody's entries",
        TOLD,
        "sum(entry.seq <= head.seq for entry in of_run(ledger.entries(), run))",
        "head.seq",
        (BINDING + "test_one_coordinator_is_not_told_of_another",),
    ),
    Mutant(
        322,
        "another entry than the one that was told is taken for it",
        TOLD,
        "if len(entries) < number or entries[number - 1].hash != digest:",
        "if len(entries) < number:",
        (BINDING + "test_a_ledger_that_lost_what_its_coordinator_has_seen_is_refused",),
    ),
    Mutant(
        323,
        "the policy is asked when a run is agreed on, and never again",
        TERMS,
        "        check_policy(policy, proposal)\n        if _decision(",
        "        if _decision(",
        (OFFERS + "test_an_order_is_held_against_the_policy_of_today",),
    ),
    Mutant(
        324,
        "terms need no signature",
        TERMS,
        "if not Verifier(asked.coordinator).verify(terms.signature, terms.message(asked.run)):",
        "if not terms.signature:",
        (OFFERS + "test_terms_that_are_not_the_coordinators_are_refused_and_leave_nothing",),
    ),
    Mutant(
        325,
        "bytes leave that the ledger did not release",
        GATE,
        '        and (masked or entry.body["sha256"] == digest)\n',
        "",
        (LEAVING + "test_an_update_that_the_ledger_did_not_release_stays",),
    ),
)

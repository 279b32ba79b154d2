"""Mutants of the ledger, and of the order in which a node and a coordinator write it."""

from __future__ import annotations

from harness import Mutant

BOOK, BODIES = "fedpeft.privacy.ledger.ledger", "fedpeft.privacy.ledger.entry_bodies"
CHAIN, STORE = "fedpeft.privacy.ledger.chain", "fedpeft.privacy.ledger.store"
SPENDING, PROMISE = "fedpeft.privacy.ledger.budget", "fedpeft.privacy.ledger.promise"
CLOCK, WITNESS = "fedpeft.privacy.ledger.clock", "fedpeft_clients.outbox.ledger_witness"
ROUND = "fedpeft_clients.rounds.local_round"

LEDGER = "fedpeft/test_privacy_ledger.py::"
CLAIMS = "fedpeft/test_privacy_ledger_claims.py::"
PROMISES = "fedpeft/test_privacy_ledger_promises.py::"
NODE = "clients/test_privacy_bugs.py::"
TASKS = "clients/test_tasks.py::"

MUTANTS = (
    Mutant(
        9,
        "a record more in a person's data costs what a person more costs",
        SPENDING,
        "return 1 if self.unit == asked.unit else 2",
        "return 1",
        (PROMISES + "test_a_coarser_guarantee_covers_two_steps_of_a_record",),
    ),
    Mutant(
        9,
        "two steps of a guarantee keep its delta",
        SPENDING,
        "if needed <= delta:",
        "if needed <= 1.0:",
        (PROMISES + "test_the_conversion_is_no_less_than_the_true_loss_of_a_replaced_person",),
    ),
    Mutant(
        11,
        "a run that was asked again is held to no promise",
        PROMISE,
        'if left + body["steps"] > most:',
        'if body["steps"] > most:',
        (PROMISES + "test_a_run_never_spends_more_than_its_plan_however_often_round_1_is_asked_for",),
    ),
    Mutant(
        12,
        "the clock of the machine dates the entries, wherever it was set",
        CLOCK,
        "return max(seen, clock)",
        "return clock",
        (PROMISES + "test_a_clock_that_is_set_back_makes_nothing_old",),
    ),
    Mutant(
        12,
        "a year passes when the clock says so",
        CLOCK,
        "clock > seen + LEAP",
        "clock > seen + 1000 * LEAP",
        (PROMISES + "test_a_clock_that_leaps_ahead_neither_resets_nor_empties_the_year",),
    ),
    Mutant(
        12,
        "a ledger that the outbox log outran is known by its length alone",
        WITNESS,
        "recorded = {entry.hash for entry in chain.entries} | _declared(chain)",
        "known = list(known)\n"
        "    recorded = {o.head.hash for o in known if chain.head.seq >= o.head.seq} | _declared(chain)",
        ("clients/test_witness.py::test_a_copy_that_was_put_back_and_went_on_is_known_by_its_hashes",),
    ),
    Mutant(
        12,
        "the same records in another file format are other records",
        "fedpeft_clients.governance.record_overlap",
        'return _GAP.sub(" ", plain.casefold()).strip()',
        "return plain",
        (
            "clients/test_fingerprints.py::test_the_same_records_under_a_second_lineage_are_refused[typed_otherwise]",
        ),
    ),
    Mutant(
        23,
        "what was promised before is forgotten when another unit is promised",
        SPENDING,
        "others = [claim for claim in promised(spent) if claim != newest]",
        "others = list[Claim]()",
        (CLAIMS + "test_a_promise_per_person_is_broken_by_no_promise_per_record",),
    ),
    Mutant(
        11,
        "a round of training is charged as one step",
        BODIES,
        "else plan.event(steps)),",
        "else plan.event(1)),",
        ("fedpeft/test_privacy_bugs.py::test_one_reservation_counts_each_of_its_steps",),
    ),
    Mutant(
        11,
        "a node reserves one step, whatever it was asked for",
        ROUND,
        'releases = 1 if privacy is not None and privacy.unit == "node" else task.steps',
        "releases = 1",
        (NODE + "test_a_round_is_charged_for_every_step_that_it_takes",),
    ),
    Mutant(
        12,
        "each start of the process begins with an empty ledger",
        STORE,
        "path.parent.mkdir(parents=True, exist_ok=True)",
        "path.parent.mkdir(parents=True, exist_ok=True)\n        path.unlink(missing_ok=True)",
        (CLAIMS + "test_a_reservation_that_never_started_is_handed_out_again",),
    ),
    Mutant(
        12,
        "each run has a budget of its own",
        BOOK,
        'spent = charges(chain.entries, body["lineage"])',
        'same = [e for e in chain.entries if e.body.get("run") == body.get("run")]\n'
        '        spent = charges(same, body["lineage"])',
        (LEDGER + "test_epsilon_is_joint_over_runs",),
    ),
    Mutant(
        12,
        "edited data are new data",
        BOOK,
        "entry_bodies.reserve(lineage, run, round, plan, steps) |",
        'entry_bodies.reserve(f"{lineage} {content}", run, round, plan, steps) |',
        (CLAIMS + "test_edited_or_renamed_data_inherit_what_was_spent",),
    ),
    Mutant(
        12,
        "a ledger that was put back and went on is known by its length alone",
        CHAIN,
        "if known is not None and known not in (Head(0, GENESIS), self.at(known.seq)):",
        "if known is not None and known.seq > self.head.seq:",
        ("fedpeft/test_privacy_ledger_signed.py::test_a_branch_from_a_snapshot_is_noticed_by_its_hash",),
    ),
    Mutant(
        12,
        "the node does not ask whether its ledger holds what it held",
        ROUND,
        "ledger_view.require(ledger, node.run.hex(), number, digest)",
        "ledger_view.place(ledger, node.run.hex(), ledger.head())",
        (TASKS + "test_a_rolled_back_ledger_is_noticed",),
    ),
    Mutant(
        13,
        "the ledger is told that data are opened after they were",
        ROUND,
        "ledger.started(reservation)\n    trained = _train(node, task, taps, plan, matrix)",
        "trained = _train(node, task, taps, plan, matrix)\n    ledger.started(reservation)",
        (NODE + "test_a_round_that_dies_with_its_data_open_is_paid_for_and_paid_again",),
    ),
    Mutant(
        13,
        "the coordinator does not write that nodes were asked: after a crash other noise is free",
        "fedpeft.aggregation.central_dp",
        "        self.ledger.started(reservation)\n",
        "",
        ("server/test_central.py::test_a_round_that_was_killed_when_nodes_were_asked_is_charged_again",),
    ),
    Mutant(
        13,
        "a commit does not wait for the disk",
        STORE,
        'db.execute("PRAGMA synchronous=FULL")',
        'db.execute("PRAGMA synchronous=OFF")',
        (LEDGER + "test_every_connection_waits_for_the_disk",),
    ),
    Mutant(
        14,
        "a price is paid although the ledger moved since it was worked out",
        BOOK,
        "if page.chain.head == chain.head:",
        "if page.chain.head.seq >= chain.head.seq:",
        (
            "fedpeft/test_privacy_ledger_faults.py::"
            "test_a_charge_that_another_process_overtakes_is_priced_again",
        ),
    ),
    Mutant(
        15,
        "a round whose data were opened is handed out again for nothing",
        BOOK,
        'if entry.kind in ("started", "released")}',
        'if entry.kind == "released"}',
        (LEDGER + "test_a_round_that_was_started_is_charged_again",),
    ),
    Mutant(
        15,
        "two processes train under one reservation",
        BOOK,
        "if any(_about(entry, seq) for entry in page.chain.entries[seq:]):",
        'if any(_about(entry, seq) and entry.kind == "released" for entry in page.chain.entries[seq:]):',
        (CLAIMS + "test_a_reservation_is_started_once_by_one_process",),
    ),
    Mutant(
        15,
        "a repeated order trains anew",
        "fedpeft_clients.rounds.handlers",
        "answer = _answered(home, task)\n",
        "answer = None\n",
        (TASKS + "test_a_repeated_order_sends_the_stored_bytes_and_spends_nothing",),
    ),
    Mutant(
        27,
        "the hash that leaves a node tells when its entries were written",
        BODIES,
        '"salt": os.urandom(SALT_BYTES).hex()',
        '"salt": bytes(SALT_BYTES).hex()',
        (
            "fedpeft/test_privacy_bugs.py::"
            "test_the_head_that_leaves_a_node_does_not_tell_when_an_entry_was_written",
        ),
    ),
    Mutant(
        27,
        "a private round tells how long it took",
        ROUND,
        "train_s=0.0 if",
        'train_s=notes["train_s"] if',
        (TASKS + "test_under_privacy_the_seconds_stay_at_home",),
    ),
    Mutant(
        35,
        "a round without a guarantee is recorded with its plan's unit and trust",
        BODIES,
        "private = plan is not None and not plan.reproducible",
        "private = plan is not None",
        (CLAIMS + "test_a_round_without_a_guarantee_is_recorded_as_not_private",),
    ),
    Mutant(
        36,
        "entries of an unknown kind are taken to spend nothing",
        CHAIN,
        'and body.get("kind") not in FREE',
        'and body.get("kind") in SPENDING',
        (CLAIMS + "test_an_entry_of_another_version_refuses_its_lineage_and_no_other",),
    ),
)

"""Mutants of the fence: what strangers may take, whom a request is signed for, what is logged.

Numbers from 401 on: they are no bugs of the table in docs/privacy-bugs.md.
"""

from __future__ import annotations

from harness import Mutant

SIGNATURE, PROOF, ENTRANCE = (
    "fedpeft.flower.signature",
    "fedpeft.flower.proof",
    "fedpeft.flower.superlink.request_check",
)
ADMISSION, LIMITS, OUTPUT = (
    "fedpeft.flower.superlink.connection_limits",
    "fedpeft.rate_limits",
    "fedpeft_server.service.output_file",
)
HEADS, DOOR = "fedpeft/test_flower_entrance.py::", "fedpeft/test_flower_admission.py::"
PRINTED = "server/test_supervisor_output.py::"

PARTS = "parts = [self.audience, self.method, self.target, self.moment, self.digest]"

MUTANTS = (
    Mutant(
        401,
        "a request is good for every coordinator",
        SIGNATURE,
        PARTS,
        "parts = [self.method, self.target, self.moment, self.digest]",
        (HEADS + "test_a_signature_is_good_for_its_own_coordinator",),
    ),
    Mutant(
        402,
        "a request is good for every call",
        SIGNATURE,
        PARTS,
        "parts = [self.audience, self.moment, self.digest]",
        (HEADS + "test_a_signature_is_good_for_its_own_call",),
    ),
    Mutant(
        403,
        "the body is not compared with what was signed",
        ENTRANCE,
        "if body is None or (result.digest is not None and await _digest(body) != result.digest):",
        "if body is None:",
        (HEADS + "test_a_signature_is_good_for_its_own_body",),
    ),
    Mutant(
        404,
        "a signature is good for ever",
        SIGNATURE,
        "return asked.digest if asked.timely(time.time()) and verify(asked.text(), signature) else None",
        "return asked.digest if verify(asked.text(), signature) else None",
        (HEADS + "test_a_signature_is_good_for_five_minutes",),
    ),
    Mutant(
        405,
        "every node may sign as little as a stock node",
        PROOF,
        "if digest is None and not self.stock(line):",
        "if digest is None and not line:",
        (HEADS + "test_only_a_key_that_was_enrolled_as_stock_signs_the_time_alone",),
    ),
    Mutant(
        406,
        "a header that decides may stand twice",
        PROOF,
        "if any(names.count(name) > 1 for name in ONCE):",
        "if any(names.count(name) > 2 for name in ONCE):",
        (HEADS + "test_a_header_that_decides_stands_once",),
    ),
    Mutant(
        407,
        "whoever makes a key of his own may send a body",
        PROOF,
        "if not self.enrolled(pem):",
        "if not pem:",
        (HEADS + "test_no_byte_of_a_strangers_body_is_read",),
    ),
    Mutant(
        408,
        "a body is read before its sender is known",
        ENTRANCE,
        "        result = await asyncio.to_thread(self.proof, scope)\n",
        "        await receive()\n        result = await asyncio.to_thread(self.proof, scope)\n",
        (HEADS + "test_no_byte_of_a_strangers_body_is_read",),
    ),
    Mutant(
        409,
        "each address of an IPv6 network has room of its own",
        LIMITS,
        "_PREFIX = 64",
        "_PREFIX = 128",
        (DOOR + "test_an_ipv6_network_is_one_however_many_addresses_it_has",),
    ),
    Mutant(
        410,
        "who proves a key is still counted, and turned out, as a stranger",
        ADMISSION,
        "        self.leave(visit)\n        visit.key, peers",
        "        visit.key, peers",
        (DOOR + "test_who_proves_a_key_is_never_turned_out_for_a_stranger",),
    ),
    Mutant(
        411,
        "the newest stranger is turned out: who came first stays",
        ADMISSION,
        "oldest = next(iter(peers))",
        "oldest = next(reversed(peers))",
        (DOOR + "test_a_network_turns_out_its_own_oldest_visitor",),
    ),
    Mutant(
        412,
        "any secret of the right length opens the port on loopback",
        SIGNATURE,
        "return lambda text, signature: hmac.compare_digest(sign(text), signature)",
        "return lambda text, signature: len(sign(text)) == len(signature)",
        (HEADS + "test_the_secret_opens_the_inside_and_nothing_else_does",),
    ),
    Mutant(
        413,
        "a node may have any number of bodies under way",
        ENTRANCE,
        "if self._under_way[result.who] + length > self.most_under_way:",
        "if length > self.most_under_way:",
        (HEADS + "test_what_one_sender_has_under_way_is_bounded",),
    ),
    Mutant(
        414,
        "escape codes of strangers reach the log",
        OUTPUT,
        "_PRINTABLE = frozenset({0x09, *range(0x20, 0x7F)})",
        "_PRINTABLE = frozenset({0x09, 0x1B, *range(0x20, 0x7F)})",
        (PRINTED + "test_control_characters_are_escaped",),
    ),
    Mutant(
        415,
        "a log is looked at when its process starts, and then grows",
        OUTPUT,
        "if path.exists() and path.stat().st_size + len(line) > LARGEST_OUTPUT:",
        "if path.exists() and path.stat().st_size > 1000 * LARGEST_OUTPUT:",
        (PRINTED + "test_the_file_is_bounded_while_the_process_runs",),
    ),
)

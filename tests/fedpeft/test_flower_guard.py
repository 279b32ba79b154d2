"""What an enrolled node with a good key may do at a link: answer for itself, within its quota."""

import os
import resource
import threading
import time

import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.serverapp import ServerApp
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from fedpeft import flower
from fedpeft.flower.messages import identify, serialise
from fedpeft.flower.superlink.uploads import DEFAULT_QUOTA
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply
from fedpeft_server.rounds import ask_nodes
from fedpeft_server.rounds.ask_nodes import Question, ask
from tests.fedpeft.flower_stranger import Stranger, chunk, leaf, name_of, part, payload, poison, tree
from tests.fedpeft.flower_world import REPLY, World, wait_for

MIB = 2**20


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One link with the honest nodes a and v and the hostile m."""
    made = World(tmp_path_factory.mktemp("guard"))
    made.start_link()
    for name in ("a", "v"):
        made.enrol(name)
        made.start_node(name)
    yield made
    made.close()


@pytest.fixture(scope="module")
def rogue(world):
    stranger = Stranger(world, "m")
    yield stranger
    stranger.close()


class Coordinator:
    """A ServerApp whose grid the test holds for as long as it likes."""

    def __init__(self, world, nodes):
        self._ready, self._stop, self.grid, self._nodes = threading.Event(), threading.Event(), None, nodes
        app = ServerApp()

        @app.main()
        def main(grid, context):
            wait_for(lambda: len(list(grid.get_node_ids())) >= self._nodes)
            self.grid, self.run = grid, context.run_id
            self._ready.set()
            self._stop.wait(300)

        self._thread = threading.Thread(target=flower.run_server_app, args=(world.link, app, {}), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(90)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)

    def send(self, node, body=b"order", kind="train", ttl=120.0):
        return next(iter(self.grid.push_messages([Message(pack(REPLY, body), node, kind, ttl=ttl)])))


@pytest.fixture(scope="module")
def coordinator(world, rogue):
    with Coordinator(world, 3) as made:
        yield made


@pytest.fixture(scope="module")
def honest(world, coordinator, rogue):
    """Numbers of the honest nodes by name."""
    keys = {line.split()[1]: node for node, line in flower.public_keys(coordinator.grid).items()}
    lines = {name: public(world, name) for name in ("a", "v")}
    return {name: keys[line] for name, line in lines.items()}


def public(world, name):
    from fedpeft.trust import public_line

    return public_line((world.folder / f"{name}.key").read_bytes()).split()[1]


def words(replies):
    return {node: unpack(reply, TrainReply, 2**20)[1].decode() for node, reply in replies.items()}


def stored(world):
    return sum(file.stat().st_size for file in world.folder.rglob("*") if file.is_file())


def handed(coordinator, rogue, body=None):
    coordinator.send(rogue.number, body or os.urandom(4).hex().encode())
    return rogue.order()


def settle(coordinator, rogue, arrivals):
    """Answer and collect, so that the next test finds nothing under way."""
    asked, seen = {one.header.metadata.message_id for one in arrivals}, set()
    for arrival in arrivals:
        rogue.error_reply(arrival)

    def collected():
        seen.update(
            reply.metadata.reply_to_message_id for reply in coordinator.grid.pull_messages(asked - seen)
        )
        return seen == asked

    wait_for(collected)


@pytest.fixture
def arrival(coordinator, rogue):
    """A message that the hostile node was handed."""
    made = handed(coordinator, rogue)
    yield made
    settle(coordinator, rogue, [made])


POISONS = ["of its own accord", "in a reply that it never sends", "in a reply that it sends"]


@pytest.mark.parametrize("how", POISONS)
def test_nobody_can_spoil_the_names_that_the_coordinators_messages_need(coordinator, rogue, honest, how):
    """The same greeting goes to all; its parts have the same names, which one node has seen."""
    greeting = os.urandom(4).hex().encode()
    arrival = handed(coordinator, rogue, greeting)
    record = next(node.object_id for node in iterate_object_tree(arrival.tree) if len(node.children) == 1)
    rogue.fleet.fetch(arrival)
    if how == POISONS[0]:
        assert poison(rogue, arrival.run_id, record).objects_to_push == []
    elif how == POISONS[1]:
        root = name_of(os.urandom(8))
        rogue.announce(rogue.facts(arrival), ObjectTree(object_id=root, children=[leaf(record)]))
    else:
        assert rogue.reply(arrival, leaf(record), []) == [True]
    question = Question("train", "g", 30.0)
    replies = ask(coordinator.grid, question, {honest["a"]: pack(REPLY, greeting)})
    assert words(replies) == {honest["a"]: f"{greeting.decode()} by a"}
    settle(coordinator, rogue, [arrival])


def test_a_node_cannot_spoil_the_names_that_another_nodes_reply_needs(coordinator, rogue, honest, world):
    """An honest reply's records can be guessed where they hold nothing secret."""
    body = os.urandom(4).hex().encode()
    guessed = pack(REPLY, body + b" by v")
    arrival = handed(coordinator, rogue, body)
    root = name_of(os.urandom(8))
    answer = rogue.announce(
        rogue.facts(arrival), ObjectTree(object_id=root, children=[leaf(guessed.object_id)])
    )
    assert set(answer.objects_to_push) == {root, guessed.object_id}
    replies = ask(coordinator.grid, Question("train", "g", 30.0), {honest["v"]: pack(REPLY, body)})
    assert words(replies) == {honest["v"]: f"{body.decode()} by v"}
    settle(coordinator, rogue, [arrival])


def test_a_node_cannot_give_orders(world, coordinator, rogue, honest, arrival):
    identify(coordinator.run, 1)
    order = Message(pack(REPLY, b"FORGED"), honest["v"], "train", ttl=200)
    order.metadata.__dict__["_src_node_id"] = 1
    _, objects = serialise(order)
    facts = rogue.facts(arrival, reply_to_message_id="", dst_node_id=honest["v"])
    for source in (1, rogue.number):
        facts.src_node_id = source
        answer = rogue.announce(facts, tree_of(order))
        assert answer.objects_to_push == [] and answer.session_id == ""
        assert not any(rogue.put(facts.run_id, answer.session_id, one) for one in objects.values())
    ask(coordinator.grid, Question("train", "g", 30.0), {honest["v"]: pack(REPLY, b"after")})
    assert "after" in world.calls("v")
    assert "FORGED" not in world.calls("v")


def tree_of(message):
    from flwr.supercore.inflatable import inflatable_object

    with inflatable_object.no_object_id_recompute():
        return inflatable_object.get_object_tree(message)


OTHERS = ["src_node_id", "reply_to_message_id", "group_id", "message_type", "run_id", "dst_node_id"]


@pytest.mark.parametrize("field", OTHERS)
def test_a_reply_speaks_for_its_sender_and_its_order_only(coordinator, rogue, honest, field, arrival):
    """Even where the order of another node is known by name."""
    changed = {
        "src_node_id": honest["v"],
        "reply_to_message_id": coordinator.send(honest["v"], b"order", ttl=20.0),
        "group_id": "7",
        "message_type": "query",
        "run_id": arrival.run_id ^ 1,
        "dst_node_id": honest["v"],
    }[field]
    assert rogue.reply(arrival, None, [], **{field: changed}) == [403]
    if field == "reply_to_message_id":
        both = {field: changed, "src_node_id": honest["v"]}
        assert rogue.reply(arrival, None, [], **both) == [403]


def test_what_a_reply_says_inside_is_what_its_header_says(coordinator, rogue, honest, arrival):
    inside, outside = rogue.facts(arrival, src_node_id=honest["v"]), rogue.facts(arrival)
    root = part("Message", [], inside.SerializeToString())
    answer = rogue.announce(outside, tree(root))
    assert rogue.put(outside.run_id, answer.session_id, root) in (400, 403)


def test_a_node_reads_and_frees_its_own_messages_only(world, coordinator, rogue, honest):
    world.nodes["v"].terminate()
    world.nodes["v"].wait()
    other = Stranger(world, "v", enrol=False)
    try:
        order = coordinator.send(other.number, b"for v alone")
        arrival = other.order()
        parts = [node.object_id for node in iterate_object_tree(arrival.tree)]
        rogue.confirm(arrival.run_id, order)
        assert not any(rogue.pull(arrival.run_id, name).object_found for name in parts)
        assert all(other.pull(arrival.run_id, name).object_available for name in parts)
        other.confirm(arrival.run_id, order)
        assert not other.pull(arrival.run_id, order).object_found
    finally:
        other.close()
        world.start_node("v")


def test_freeing_a_message_that_is_still_under_way_does_not_stop_the_coordinator(
    coordinator, rogue, monkeypatch
):
    """The order is handed out before its parts are there."""
    from flwr.supercore.runtime import RuntimeHttpClient

    first, push = threading.Event(), RuntimeHttpClient.PushObject

    def slow(self, request, **options):
        if not first.is_set():
            first.set()
            arrival = rogue.order()
            rogue.confirm(arrival.run_id, arrival.header.metadata.message_id)
        return push(self, request, **options)

    monkeypatch.setattr(RuntimeHttpClient, "PushObject", slow)
    name = coordinator.send(rogue.number, os.urandom(8).hex().encode(), ttl=15.0)
    assert name and first.is_set()
    assert all(rogue.pull(coordinator.run, part).object_available for part in [name])


def test_what_nobody_asked_for_takes_no_room(world, coordinator, rogue, arrival):
    before = stored(world)
    for _ in range(4):
        content = chunk(os.urandom(4 * MIB))
        answer = poison(rogue, arrival.run_id, name_of(content))
        assert not rogue.put(arrival.run_id, answer.session_id, content)
    assert stored(world) - before < MIB


def test_a_part_is_what_was_announced_or_is_not_taken(coordinator, rogue, arrival):
    content = chunk(b"x" * 1000)
    record, contents = payload([content], [0], 1000)
    facts = rogue.facts(arrival)
    root = part("Message", [record.object_id], facts.SerializeToString())
    answer = rogue.announce(facts, tree(root, record))
    run, session = arrival.run_id, answer.session_id
    assert rogue.put(run, session, b"other", name_of(content)) == 400
    assert rogue.put(run, session, chunk(b"y")) is False
    assert rogue.put(run, "f" * 32, content) is False
    array = contents[1]
    childless = ObjectTree(object_id=record.object_id, children=[leaf(name_of(array))])
    answer = rogue.announce(facts, tree(root, childless))
    assert rogue.put(run, answer.session_id, array) == 400
    assert rogue.put(run, session, content) is False  # the reply has begun again


TREES = {
    "too many parts": lambda: tree(b"r", *(leaf(name_of(os.urandom(8))) for _ in range(DEFAULT_QUOTA.parts))),
    "too deep": lambda: tree(b"a", tree(b"b", tree(b"c", tree(b"d", tree(b"e", tree(b"f")))))),
    "a name twice": lambda: tree(b"a", tree(b"b"), tree(b"b")),
    "no name": lambda: tree(b"a", leaf("0x" + "0" * 62)),
    "a name in capitals": lambda: tree(b"a", leaf("A" * 64)),
}


@pytest.mark.parametrize("what", TREES)
def test_a_message_has_one_shape(coordinator, rogue, what, arrival):
    assert rogue.announce(rogue.facts(arrival), TREES[what]()) == 400


def test_a_node_has_a_quota_of_replies_and_gets_room_again_once_they_are_read(coordinator, rogue):
    most = DEFAULT_QUOTA.replies
    arrivals = [handed(coordinator, rogue) for _ in range(most + 1)]
    assert [rogue.error_reply(one) for one in arrivals[:most]] == [[True]] * most
    assert rogue.announce(rogue.facts(arrivals[-1]), tree(b"r")) == 413
    settle(coordinator, rogue, arrivals[:most])
    settle(coordinator, rogue, arrivals[most:])


def answers_of(rogue, coordinator, honest, act, deadline=20.0, **terms):
    """One round with the honest nodes, in which the hostile one acts on its order; the replies."""
    thread = threading.Thread(target=lambda: act(rogue.order()))
    nodes = [*honest.values(), rogue.number]
    thread.start()
    question = Question("train", "g", deadline, **terms)
    replies = ask(coordinator.grid, question, {node: pack(REPLY, b"round") for node in nodes})
    thread.join(60)
    return replies


def test_a_payload_that_names_a_piece_many_times_is_not_put_together(coordinator, rogue, honest):
    """5 MB stood for 800 MB; a head of 1 MiB could name the piece half a million times."""
    content, times, peaks = chunk(bytes(1_000_000)), 100_000, []

    def act(arrival):
        record, contents = payload([content], [0] * times, 1_000_000 * times)
        peaks.append(rogue.reply(arrival, record, contents))

    before = peak()
    replies = answers_of(rogue, coordinator, honest, act, largest=2 * MIB)
    assert peaks == [[True] * 6]
    assert words({node: replies[node] for node in honest.values()})
    assert (replies[rogue.number].error.code, replies[rogue.number].error.reason) == (2, "MessageTooLong")
    assert peak() - before < 200


def peak():
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("pieces", [1, 150])
def test_a_reply_of_many_small_parts_delays_itself_only(coordinator, rogue, honest, pieces):
    """More parts than the longest payload has are never fetched."""
    chunks, sent = [chunk(os.urandom(16)) for _ in range(pieces)], []

    def act(arrival):
        record, contents = payload(chunks, list(range(pieces)), 16 * pieces)
        sent.append(rogue.reply(arrival, record, contents))

    replies = answers_of(rogue, coordinator, honest, act, deadline=60.0, largest=MIB)
    assert all(sent[0])
    assert len(words({node: replies[node] for node in honest.values()})) == 2
    if pieces == 1:
        assert replies[rogue.number].has_content()
    else:
        assert replies[rogue.number].error.reason == "MessageTooLong"


def test_one_silent_node_does_not_hold_the_others_up_until_the_deadline(
    coordinator, rogue, honest, monkeypatch
):
    monkeypatch.setattr(ask_nodes, "SHORTEST_GRACE", 1.0)
    late = []
    started = time.monotonic()
    replies = answers_of(rogue, coordinator, honest, late.append, deadline=120.0, grace=1.0)
    assert replies.keys() == set(honest.values())
    assert time.monotonic() - started < 60
    assert rogue.error_reply(late[0]) == [True]  # what comes late is freed unread
    name = late[0].header.metadata.message_id
    wait_for(lambda: coordinator.grid.pull_messages([]) == [] and name not in coordinator.grid._unanswered)

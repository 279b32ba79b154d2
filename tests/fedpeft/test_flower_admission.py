"""Who is let in when all want to: counted without sockets, with a clock of our own."""

import random

from fedpeft.flower.superlink.connection_limits import Admission, Limits

SMALL = Limits(
    strangers=10, of_network=4, of_key=3, burst=8, per_second=2, all_burst=20, all_per_second=5, most_known=5
)


class World:
    """An admission, the time, and who was turned out."""

    def __init__(self, limits=SMALL):
        self.now, self.out, self.made = 0.0, [], {}
        self.admission = Admission(limits, lambda: self.now)

    def arrive(self, name, address):
        visit = self.admission.arrive(address, lambda: self.out.append(name))
        self.made[name] = visit
        return visit


def test_a_network_turns_out_its_own_oldest_visitor():
    world = World()
    for index in range(6):
        world.arrive(index, "10.0.0.1")
    world.arrive("other", "10.0.0.2")
    assert world.out == [0, 1]
    assert world.admission.count() == (5, 0)


def test_an_ipv6_network_is_one_however_many_addresses_it_has():
    world = World()
    for index in range(6):
        world.arrive(index, f"2001:db8::{index + 1}")
    assert world.out == [0, 1]


def test_when_all_is_full_the_busiest_network_loses_its_oldest():
    world = World()
    for index in range(4):
        world.arrive(f"busy {index}", "10.0.0.1")
    for index in range(6):
        world.arrive(index, f"10.0.1.{index}")
    assert world.out == []
    assert world.arrive("honest", "10.0.2.1") is not None
    assert world.out == ["busy 0"]
    assert world.admission.count() == (10, 0)


def test_who_proves_a_key_is_never_turned_out_for_a_stranger():
    world = World()
    world.admission.prove(world.arrive("node", "10.0.0.1"), "key")
    for index in range(500):
        world.now += 0.5
        world.arrive(index, "10.0.0.1" if index % 2 else f"10.1.0.{index % 250}")
    assert "node" not in world.out
    assert world.admission.count()[1] == 1


def test_a_known_network_has_room_that_strangers_elsewhere_cannot_take():
    world = World()
    world.admission.prove(world.arrive("node", "10.0.0.1"), "key")
    for index in range(60):
        world.now += 0.3
        world.arrive(index, f"10.1.{index}.1")
    before = list(world.out)
    assert world.arrive("again", "10.0.0.1") is not None
    assert world.out == before


def test_a_known_network_is_let_in_when_all_others_come_too_fast():
    world = World()
    world.admission.prove(world.arrive("node", "10.0.0.1"), "key")
    turned_away = [world.arrive(index, f"10.1.{index}.1") is None for index in range(60)]
    assert any(turned_away)
    assert world.arrive("again", "10.0.0.1") is not None
    world.now += SMALL.known_seconds + 1
    for index in range(60):
        world.arrive(f"later {index}", f"10.2.{index}.1")
    assert world.arrive("long after", "10.0.0.1") is None, "an hour later it is like all others"


def test_a_network_that_comes_too_often_waits():
    world = World()
    let_in = [world.arrive(index, "10.0.0.1") is not None for index in range(12)]
    assert let_in == [True] * 8 + [False] * 4
    world.now += 1.0
    assert [world.arrive(index, "10.0.0.1") is not None for index in range(3)] == [True, True, False]


def test_a_key_has_few_connections():
    world = World()
    for index in range(5):
        world.admission.prove(world.arrive(index, f"10.0.0.{index}"), "key")
    assert world.out == [0, 1]
    assert world.admission.count() == (0, 3)


def test_a_connection_that_is_told_another_key_counts_once():
    """Behind a proxy one connection carries the requests of many nodes."""
    world = World()
    visit = world.arrive("proxy", "10.0.0.1")
    for key in ("a", "b", "a", "a"):
        world.admission.prove(visit, key)
        assert world.admission.count() == (0, 1)
    world.admission.leave(visit)
    world.admission.leave(visit)
    assert world.admission.count() == (0, 0)


def test_fifty_nodes_behind_one_address_get_in_beside_a_flood_from_there():
    """Each needs a tenth of a second to prove its key; the flood makes as many connections as it may."""
    source, world, waiting, proved = random.Random(1), World(Limits()), {}, set()
    for step in range(3000):
        world.now, node = world.now + 0.01, source.randrange(50)
        for asks in source.sample(range(6), 6):
            if asks:
                world.arrive(f"flood {step} {asks}", "10.0.0.1")
            elif node not in proved and node not in waiting:
                waiting[node] = (world.arrive(f"{node} {step}", "10.0.0.1"), step)
        for name, (visit, since) in list(waiting.items()):
            if visit is None or f"{name} {since}" in world.out:
                del waiting[name]
            elif step - since > 10:
                world.admission.prove(visit, f"key {name}")
                proved.add(name)
                del waiting[name]
    assert len(proved) == 50, "in half a minute; who was turned away comes again"


def test_one_key_does_not_make_many_networks_known():
    """An enrolled node with an IPv6 /48 proves its key from each of its /64s, and its friends come after."""
    world = World(Limits())
    world.admission.prove(world.arrive("honest", "10.0.0.1"), "honest")
    for index in range(5000):
        world.now += 0.01
        visit = world.arrive(index, f"2001:db8:0:{index:x}::1")
        if visit is not None:
            world.admission.prove(visit, "greedy")
    known = list(world.admission._known)
    assert len(known) == 1 + Limits().known_of_key and "10.0.0.1" in known
    assert set(world.admission._networks) == set().union(*world.admission._vouching.values())
    assert len(world.admission._vouching) == len(known)


def test_a_network_stays_known_while_another_key_vouches_for_it():
    world = World(Limits(known_of_key=2))
    for key in ("honest", "greedy"):
        world.admission.prove(world.arrive(key, "10.0.0.1"), key)
    for index in range(5):
        world.admission.prove(world.arrive(index, f"10.1.{index}.1"), "greedy")
    assert list(world.admission._known) == ["10.0.0.1", "10.1.3.1", "10.1.4.1"]


def test_strangers_of_known_networks_are_bounded_together():
    limits = Limits()
    world = World(limits)
    networks = [f"10.1.{index}.1" for index in range(200)]
    for network in networks:
        world.now += 0.1
        world.admission.prove(world.arrive(network, network), network)
    for network in networks:
        for index in range(limits.of_network):
            assert world.arrive(f"{network} {index}", network) is not None
    assert world.admission.count() == (limits.known_strangers, len(networks))
    assert not set(networks) & set(world.out), "who proved a key stays"


def test_the_bounds_hold_whatever_comes():
    source, world = random.Random(5), World()
    visits = []
    for _ in range(5000):
        world.now += source.random()
        visit = world.arrive(len(visits), f"10.0.{source.randrange(40)}.1")
        if visit is not None:
            visits.append(visit)
            if source.random() < 0.2:
                world.admission.prove(visit, f"key {source.randrange(3)}")
        if visits and source.random() < 0.3:
            world.admission.leave(visits.pop(source.randrange(len(visits))))
        crowds = world.admission._strangers
        unknown = sum(len(crowd) for name, crowd in crowds.items() if name not in world.admission._known)
        assert unknown <= SMALL.strangers + SMALL.of_network, "a network may be forgotten while full"
        assert all(len(crowd) <= SMALL.of_network for crowd in crowds.values())
        assert all(len(crowd) <= SMALL.of_key for crowd in world.admission._of_key.values())
        assert len(world.admission._known) <= SMALL.most_known

"""How often strangers may ask, and for whom an address counts."""

import pytest

from fedpeft.rate_limits import RateLimit, network_of


def test_a_bucket_fills_again_and_memory_is_bounded():
    limit = RateLimit(burst=2, per_second=1, most_peers=50)
    assert [limit.allows("a", 0.0) for _ in range(3)] == [True, True, False]
    assert limit.allows("b", 0.0)
    assert limit.allows("a", 1.5) and not limit.allows("a", 1.5)
    for index in range(100):
        limit.allows(f"peer {index}", 2.0)
    assert len(limit._buckets) == 50


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_an_ipv6_address_counts_for_its_64(address, network):
    assert network_of(address) == network

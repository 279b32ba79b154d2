"""Keys of other organisations that this one has compared and pinned, and rosters of runs compared with them.

What a secure sum promises counts on the others being who they are said to be. Whoever may name their keys may
be all of them: with unpinned keys that is the coordinator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fedpeft.config import Config
from fedpeft.errors import ConfigError
from fedpeft.protocol.enrolment import valid_name
from fedpeft.runstore import read_json, write_json
from fedpeft.terminal import printable
from fedpeft_clients.governance.organisation import Organisation
from fedpeft_clients.governance.policy import Policy, PolicyError

State = Literal["own", "pinned", "not pinned", "another key is pinned"]

KEY_DIGITS = 64


def pinned(organisation: Organisation) -> dict[str, str]:
    """Ed25519 public keys by name of organisation, hexadecimal."""
    return read_json(organisation.pins, {})


def pin(organisation: Organisation, keys: Mapping[str, str]) -> None:
    """Pin keys that were compared with their owners.

    Raises:
        ConfigError: no name or no key, or another key is pinned under the name; nothing is pinned then.
    """
    known = pinned(organisation)
    for name, key in keys.items():
        if not valid_name(name) or len(key) != KEY_DIGITS or set(key) - set("0123456789abcdef"):
            raise ConfigError(
                f"{name!r}: a public signing key has {KEY_DIGITS} hexadecimal digits, lower case"
            )
        if known.get(name, key) != key:
            raise ConfigError(
                f"another key is pinned for {name!r}: ask its operator; if it was changed, run 'fedpeft node "
                f"roster unpin {name}' first"
            )
    write_json(organisation.pins, dict(sorted({**known, **keys}.items())))


def unpin(organisation: Organisation, name: str) -> None:
    """Forget a pinned key.

    Raises:
        ConfigError: none is pinned under the name.
    """
    known = pinned(organisation)
    if known.pop(name, None) is None:
        raise ConfigError(f"no key is pinned for {name!r}; pinned are {', '.join(known) or 'none'}")
    write_json(organisation.pins, known)


def states(organisation: Organisation, roster: Mapping[str, bytes]) -> dict[str, State]:
    """What is known of each key of a roster, by name."""
    known = pinned(organisation)

    def state(name: str, key: bytes) -> State:
        if name == organisation.name and key == organisation.signer.public:
            return "own"
        if name in known:
            return "pinned" if known[name] == key.hex() else "another key is pinned"
        return "not pinned"

    return {name: state(name, key) for name, key in sorted(roster.items())}


def check_roster(organisation: Organisation, config: Config, roster: Mapping[str, bytes]) -> None:
    """Refuse a roster that no terms could make good.

    Raises:
        PolicyError: rule ``roster``: it lacks this node's own key, has more or fewer nodes than agreed or one
            key under two names, or holds another key than the pinned one.
    """
    nodes = config.federation.nodes
    if not roster and not config.exchange.secure.enabled:
        return
    if roster.get(organisation.name) != organisation.signer.public:
        raise PolicyError("roster", "the run's roster does not hold this node's own key")
    if config.exchange.secure.enabled and not len(roster) == len(set(roster.values())) == nodes:
        keys = f"{len(set(roster.values()))} keys under {len(roster)} names"
        raise PolicyError("roster", f"the run's roster has {keys}, agreed are federation.nodes = {nodes}")
    for name, state in states(organisation, roster).items():
        if state == "another key is pinned":
            raise PolicyError(
                "roster", f"the run's roster holds {name!r} with a key other than the pinned one"
            )


def unpinned(organisation: Organisation, policy: Policy, config: Config, roster: Mapping[str, bytes]) -> str:
    """Why a run must wait for its keys to be pinned; empty where it need not."""
    if not config.exchange.secure.enabled or policy.cohort.roster != "pinned":
        return ""
    unknown = [name for name, state in states(organisation, roster).items() if state == "not pinned"]
    if not unknown:
        return ""
    return (
        f"{len(unknown)} of {len(roster)} keys of the roster are not pinned, such as that of "
        f"{printable(unknown[0])!r}: compare those of 'fedpeft node roster show RUN' with their owners, then "
        "run 'fedpeft node roster pin RUN --terms HASH' with the hash shown there"
    )

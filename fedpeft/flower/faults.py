"""What can go wrong between two machines, in one plain line each."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import httpx

from fedpeft.errors import FederationError

LARGEST_SKEW = 300
"""Seconds by which two clocks may differ; Flower refuses the signature of a request beyond."""
NO_REGISTRATION = 2001
NOT_ACTIVATED = 2004
RUN_ENDED = frozenset({2007, 2008})
KEY_IN_USE = 23
UNACCEPTABLE = "the answer "
"""How the text of an error begins that `fedpeft.flower.wire` raises."""
GONE = frozenset({16, 18, 24})
"""Flower's codes: run not found, run already finished, node not found."""


class Fault(FederationError):
    """A call that did not succeed; another try later may. ``code`` is Flower's own number, or 0."""

    def __init__(self, line: str, code: int = 0) -> None:
        super().__init__(line)
        self.code = code


class NotAdmitted(Fault):
    """The SuperLink does not take this node's signature: it has to be activated anew."""


class RunEnded(FederationError):
    """The Flower run that a call belongs to has ended."""


@contextmanager
def plain(address: str) -> Generator[None]:
    """Turn what an HTTP call to ``address`` raises into `Fault`, `NotAdmitted` or `RunEnded`."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise refused(error.response, address) from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise Fault(_broken(error, address)) from None
    except (ValueError, OSError):
        raise Fault(f"{address} answers, but not as a coordinator; is the address right?") from None


def refused(response: httpx.Response, address: str) -> FederationError:
    """What a response with an error status means."""
    code, status = flower_code(response), response.status_code
    if code in RUN_ENDED:
        return RunEnded(f"the run at {address} has ended")
    if code == NO_REGISTRATION:
        return Fault(f"{address} admits enrolled keys only, and this node was started without a key", code)
    if code == NOT_ACTIVATED:
        return Fault(
            f"{address} does not admit this node's key: it is not enrolled there or was revoked, or the"
            " node's last process ended less than a minute ago",
            code,
        )
    if status == 401:
        return NotAdmitted(_unauthorised(response, address), code)
    return Fault(f"{address} answered HTTP {status}", code)


def flower_code(response: httpx.Response) -> int:
    """Flower's number of an error, 0 where a response carries none."""
    from flwr.supercore.error import FlowerError

    error = FlowerError.from_json(response.text)
    return 0 if error is None else int(error.code)


def _unauthorised(response: httpx.Response, address: str) -> str:
    skew = _skew(response)
    if abs(skew) > LARGEST_SKEW:
        return (
            f"the clocks of this machine and of {address} differ by {abs(skew):.0f} s, at most {LARGEST_SKEW}"
            " are allowed; set this machine's clock"
        )
    return f"{address} does not know this node's key any more"


def _skew(response: httpx.Response) -> float:
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _broken(error: Exception, address: str) -> str:
    text = str(error).lower()
    if text.startswith(UNACCEPTABLE):
        return f"{address} answers, but {text}; give the coordinator's own address, without a proxy"
    if "expired" in text and "certificate" in text:
        return f"the certificate of {address} has expired; its operator must renew it"
    if "mismatch" in text and "certificate" in text:
        return f"the certificate of {address} is not made out to this address"
    if "certificate" in text:
        return f"the certificate of {address} is not signed by the authority (ca.crt) that this node trusts"
    if "ssl" in text:
        return f"{address} does not speak TLS as expected; is the address right?"
    if isinstance(error, httpx.TimeoutException):
        return f"{address} does not answer in time"
    if isinstance(error, httpx.ConnectError):
        return f"{address} cannot be reached; is the coordinator up and the network open?"
    return f"the connection to {address} broke"

"""The one tree of errors; each message says what was given, what is allowed and what to do.

FedPeftError            exit 1
├── ConfigError         exit 2   a setting, option or scenario file
├── DataError           exit 3   records that cannot be read or used
├── BaseModelError      exit 4   the base: missing, unreadable, wrong hash
├── ExchangeError       exit 5   plans, codecs, envelopes
│   ├── PlanError                an exchange plan that is not sound
│   └── EnvelopeError            bytes that are not a valid envelope
├── PrivacyError        exit 6   plans, budgets, the ledger
│   └── SecureAggregationError   terms, keys and shares of a secure sum (`fedpeft.secagg`)
├── FederationError     exit 7   rounds, quorum, messages
├── RunError            exit 8   the run directory
└── AuditError          exit 9   views, attacks, reports

Messages never contain training text: they may cross to a coordinator.
"""

from typing import ClassVar


class FedPeftError(Exception):
    """Base of every error that fedpeft raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(FedPeftError):
    """A setting that is unknown, out of range or in conflict with another."""

    exit_code = 2


class DataError(FedPeftError):
    """Records that cannot be read or used; names file and line, never the text."""

    exit_code = 3


class BaseModelError(FedPeftError):
    """A base that is missing, unreadable, of an unsupported kind or of the wrong hash."""

    exit_code = 4


class ExchangeError(FedPeftError):
    """Something is wrong with what is sent between node and coordinator."""

    exit_code = 5


class PlanError(ExchangeError):
    """An exchange plan whose order of transforms is not sound."""


class EnvelopeError(ExchangeError):
    """Bytes that are not a valid envelope for this layout, context and key."""


class PrivacyError(FedPeftError):
    """A privacy plan that does not hold, or a budget that is spent."""

    exit_code = 6


class FederationError(FedPeftError):
    """A round that cannot go on: no quorum, wrong message, refused task."""

    exit_code = 7


class RunError(FedPeftError):
    """A run directory that cannot be made, read or resumed."""

    exit_code = 8


class AuditError(FedPeftError):
    """A view that an attack cannot use, or a run that holds nothing to attack."""

    exit_code = 9


def first_line(error: Exception) -> str:
    """Kind and first line of an error of another package, at most 200 characters, as a cause in one of ours.

    A line that ends with a colon has the next one after it.

    For errors that speak of models and files; what read records may repeat their text.
    """
    lines = str(error).strip().splitlines() or [""]
    whole = lines[0] if not lines[0].endswith(":") else " ".join(line.strip() for line in lines[:2])
    return f"{type(error).__name__}: {whole[:200]}"

"""What can be checked of a data set before any run: its columns, and its chats against the bases at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpeft.config.models import BaseConfig, DataConfig
from fedpeft.data import Notes, Record, check_records
from fedpeft.errors import BaseModelError, ConfigError, DataError
from fedpeft_clients.governance.organisation import Organisation
from fedpeft_clients.governance.policy import parse_policy

_UNCUT = DataConfig(max_length=2**31)
"""Settings that cut no record: the run that will is not known yet."""


def columns_of(columns: Mapping[str, str | None]) -> DataConfig:
    """The settings that read a registered data set.

    Raises:
        ConfigError: a format, an encoding or a template that cannot be.
    """
    try:
        return DataConfig.model_validate(dict(columns))
    except ValueError as error:
        cause = str(error).split("Value error, ")[-1].split(" [type=")[0].splitlines()[0]
    raise ConfigError(f"the data set cannot be read so: {cause}")


def check_chats(organisation: Organisation, records: Sequence[Record], notes: Notes) -> None:
    """Write chats by the chat template of each base that the policy allows and that lies here.

    Raises:
        DataError: every such base refuses them; names base, file and row. Where one takes them, the others'
            causes are notes.
    """
    from fedpeft.bases.load import load_tokenizer

    policy = parse_policy(organisation.policy.read_text(encoding="utf-8"))
    chats = [record for record in records if record.messages is not None]
    if not chats or policy.bases == "any":
        return
    causes, taken = list[str](), 0
    for folder in policy.bases.values():
        try:
            notes.add(check_records(chats, load_tokenizer(BaseConfig(model=folder)), _UNCUT))
            taken += 1
        except DataError as error:
            causes.append(f"with base {folder}: {error}")
        except BaseModelError:
            continue  # fedpeft node doctor says what is wrong with it
    if causes and not taken:
        raise DataError(causes[0])
    notes.files += causes

"""Messages: identity, errors without text, and the bytes that cross a network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from flwr.supercore.task_identity import TaskIdentity

APP_FAILED = 2
EXPIRED = 3
UNREADABLE = 4
NODE_LOST = 5
REFUSED = 7
LARGEST_MESSAGE = 2**32
"""Bytes; a longer message is not read."""


def hush() -> None:
    """Let Flower say only what went wrong; it logs every message otherwise."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


def identify(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Say on whose behalf this process makes messages; Flower needs it before ``Message(...)``."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def error_reply(message: Message, code: int, reason: str) -> Message:
    """An error reply; the reason must be a plain word, never the text of an exception."""
    return Message(Error(code=code, reason=reason), reply_to=message)


def guarded(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's reply, or an error reply that names only the class of what went wrong."""
    try:
        return app(message=message, context=context)
    except Exception as error:
        return error_reply(message, APP_FAILED, type(error).__name__)


def serialise(message: Message) -> tuple[str, dict[str, bytes]]:
    """The message as the content-addressed objects that cross a network: id and objects by id."""
    with inflatable_object.no_object_id_recompute():
        nested = inflatable_object.get_all_nested_objects(message)
        return message.object_id, {key: nested[key].deflate() for key in nested}


def deserialise(message_id: str, objects: Mapping[str, bytes]) -> Message:
    """The inverse of `serialise`."""
    message = cast(Message, inflatable_utils.inflate_object_from_contents(message_id, dict(objects)))
    message.metadata.__dict__["_message_id"] = message_id
    return message

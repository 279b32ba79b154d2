"""Chats as people keep them: OpenAI's and ShareGPT's forms, to the messages that a template is given."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.data.text_files import check_text, parse_json
from fedpeft.errors import DataError

ANSWERS = "assistant"
ROLES = ("system", "developer", "user", ANSWERS, "tool", "function")
OTHER_NAMES = {
    "human": "user",
    "gpt": ANSWERS,
    "chatgpt": ANSWERS,
    "bot": ANSWERS,
    "model": ANSWERS,
    "observation": "tool",
    "ipython": "tool",
}
"""Names of roles in ShareGPT's and other forms."""
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "text", "parts")
"""Of a message: who speaks, and what; the first that is there counts."""
UNTRAINED = "untrained"
"""Key of a message of the assistant that bears no loss, as OpenAI's ``weight`` of 0 and ``train`` say."""

PICTURES = ("images", "image", "videos", "audios")
"""Columns that stand beside the text of chats about pictures or sound."""
_TEMPLATE_KEYS = ("tool_calls", "tool_call_id", "name", "function_call", "reasoning_content", "thinking")
"""Keys of a message that a template is given beside role and content."""
_NAME = re.compile(r"[A-Za-z_-]{1,24}")


@dataclass(frozen=True)
class Chat:
    """One conversation that ends with an answer.

    Attributes:
        messages: as the chat template is given them.
        tools: definitions of tools, if there are some.
        dropped: how many turns after the last answer were left out.
    """

    messages: tuple[dict[str, Any], ...]
    tools: list[dict[str, Any]] | None
    dropped: int

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Role and text of each message; a call of a tool as JSON."""
        return tuple((message["role"], _shown(message)) for message in self.messages)

    @property
    def turns(self) -> str | None:
        """The whole as JSON; None where role and text say all."""
        if not self.tools and all(message.keys() == {"role", "content"} for message in self.messages):
            return None
        return json.dumps({"messages": self.messages, "tools": self.tools}, ensure_ascii=False)


def _shown(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls") or message.get("function_call")
    text: str = message.get("content") or ""
    return text + (json.dumps(calls, ensure_ascii=False) if calls else "")


def read_chat(where: str, value: Any, tools: Any = None) -> Chat:
    """The conversation of a column's value: a list of messages, or such a list as JSON text.

    Turns after the last answer that bears loss teach nothing and are left out.

    Raises:
        DataError: something else, an unknown role, or no answer; names the message, never its text.
    """
    messages = [_message(f"{where}: message {n}", item) for n, item in enumerate(_items(where, value), 1)]
    answers = [place for place, message in enumerate(messages) if message["role"] == ANSWERS]
    if not answers:
        raise DataError(f"{where}: no message comes from the assistant; a chat needs an answer")
    answers = [place for place in answers if UNTRAINED not in messages[place]]
    if not answers:
        raise DataError(f"{where}: every answer has a weight of 0; a chat needs one that is trained")
    turns = messages[: answers[-1] + 1]
    if len(turns) < 2:
        raise DataError(f"{where}: nothing stands before the answer; a chat needs a message before it")
    if not _shown(turns[-1]).strip():
        raise DataError(f"{where}: the last message of the assistant is empty; an answer needs text")
    return Chat(tuple(turns), _tools(where, tools), len(messages) - len(turns))


def joined(where: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    """One conversation of several columns' values; only answers in the last bear loss, as TRL trains it.

    Raises:
        DataError: a value is no list of messages.
    """
    *before, last = (_items(where, value) for value in values)
    return [*({**item, "weight": 0} for items in before for item in items), *last]


def _items(where: str, value: Any) -> list[dict[str, Any]]:
    value = parse_json(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f"{where}: messages must be a list of {{role, content}} or {{from, value}} objects, or such a "
            "list as JSON text"
        )
    return value


def _message(where: str, item: dict[str, Any]) -> dict[str, Any]:
    if doubles := [key for key, value in item.items() if isinstance(value, DataError)]:
        raise DataError(f"{where}: its {doubles[0]!r} {item[doubles[0]]}")
    role = _role(where, item)
    raw = next((item[key] for key in _TEXT_KEYS if item.get(key) is not None), None)
    extras = {key: item[key] for key in _TEMPLATE_KEYS if item.get(key) is not None}
    content = _content(where, raw)
    if content is None and not (role == ANSWERS and ("tool_calls" in extras or "function_call" in extras)):
        raise DataError(f"{where} has no content; only an assistant's call of a tool may be without")
    check_text(where, json.dumps(extras, ensure_ascii=False, default=str))
    message: dict[str, Any] = {"role": role} if content is None else {"role": role, "content": content}
    message |= {UNTRAINED: True} if role == ANSWERS and not _is_trained(where, item) else {}
    return message | _plain(where, extras)


def _is_trained(where: str, item: dict[str, Any]) -> bool:
    """Whether an answer bears loss: ``weight`` of OpenAI, ``train`` of axolotl, or either as written."""
    weights = [item[key] for key in ("weight", "train") if item.get(key) is not None]
    if any(weight not in (0, 1) for weight in weights):
        raise DataError(f"{where}: its weight must be 0 or 1")
    return all(weights) and not item.get(UNTRAINED)


def _plain(where: str, extras: dict[str, Any]) -> dict[str, Any]:
    """The extras, with what JSON cannot hold refused and empty values of Parquet's structs left out."""
    try:
        return json.loads(json.dumps(extras), object_hook=_without_nulls)
    except (TypeError, ValueError):
        pass  # that error would carry the value
    raise DataError(f"{where}: its {', '.join(extras)} cannot be written as JSON")


def _without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value is not None}


def _role(where: str, item: dict[str, Any]) -> str:
    written = next((item[key] for key in _ROLE_KEYS if key in item), None)
    known = ", ".join((*ROLES, *OTHER_NAMES))
    if not isinstance(written, str):
        raise DataError(f"{where} has no role; it must be one of {known}")
    role = written.strip().lower()
    if (role := OTHER_NAMES.get(role, role)) in ROLES:
        return role
    name = repr(written) if _NAME.fullmatch(written) else "no name of a role"
    raise DataError(f"{where}: its role is {name}; known are {known}")


def _content(where: str, value: Any) -> str | None:
    if isinstance(value, str):
        check_text(where, value)
        return value
    if isinstance(value, list):
        return "".join(_part(where, part) for part in value)
    if value is None:
        return None
    raise DataError(f"{where}: its content is of type {type(value).__name__}; it must be text or text parts")


def _part(where: str, part: Any) -> str:
    if isinstance(part, str):
        check_text(where, part)
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text", None) and isinstance(text, str):
        check_text(where, text)
        return text
    name = repr(kind) if isinstance(kind, str) and _NAME.fullmatch(kind) else "of no known type"
    raise DataError(f"{where}: a part of its content is {name}; only parts of type 'text' can be trained")


def _tools(where: str, value: Any) -> list[dict[str, Any]] | None:
    value = parse_json(value) if isinstance(value, str) and value.strip() else value
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where}: 'tools' must be a list of objects, or such a list as JSON text")
    check_text(where, json.dumps(value, ensure_ascii=False, default=str))
    return _plain(where, {"tools": value})["tools"]

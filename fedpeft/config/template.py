"""Settings of text: ``data.template``, constant text and the columns between, and ``data.encoding``."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

PROMPT, COMPLETION = "prompt", "completion"
"""Names in a template that stand for the columns of ``data.prompt`` and ``data.completion``."""

_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Template:
    """A template taken apart: ``constants[i]`` stands before ``fields[i]``, the last one after all.

    The last field is the answer, the others and the text between belong to the prompt.
    """

    constants: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Take a template apart; every ``{name}`` in it is a field.

        Raises:
            ValueError: fewer than two fields, one that stands twice, or an answer that is not the last.
        """
        pieces = _FIELD.split(text)
        constants, fields = tuple(pieces[::2]), tuple(pieces[1::2])
        problem = None
        if len(fields) < 2:
            problem = f"has {len(fields)} fields"
        elif len(set(fields)) < len(fields):
            problem = "has a field twice"
        elif COMPLETION in fields[:-1] or fields[-1] == PROMPT:
            problem = f"ends with {{{fields[-1]}}}"
        if problem:
            raise ValueError(
                f"data.template {text!r} {problem}; it needs two or more columns in braces, each once, the "
                "answer last, as in '{prompt}{completion}' or '{instruction} {input} {output}'"
            )
        return cls(constants, fields)

    @property
    def is_plain(self) -> bool:
        """Whether it has the two fields prompt and completion and no column of its own."""
        return self.fields == (PROMPT, COMPLETION)

    def written(self) -> str:
        """The template for records that hold their answer as ``completion``."""
        pairs = zip(self.constants, (*self.fields[:-1], COMPLETION), strict=False)
        return "".join(f"{constant}{{{name}}}" for constant, name in pairs) + self.constants[-1]

    def prompt_of(self, values: tuple[str, ...]) -> str:
        """The text before the answer, of the values of all fields but the last."""
        pairs = zip(self.constants, values, strict=False)
        return "".join(constant + value for constant, value in pairs) + self.constants[-2]


def written_in_a_shell(text: str) -> str:
    """A template as a shell passes it on: line breaks and tabs are written out there, as in TOML."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _template(text: str) -> str:
    Template.parse(text)
    return text


def _encoding(name: str) -> str:
    try:
        known = codecs.lookup(name).name
        "".encode(known)
    except LookupError:
        raise ValueError(
            f"{name!r} is no encoding of text that Python knows; utf-8, utf-16, cp1252, latin-1 are some"
        ) from None
    return known


TemplateText = Annotated[str, AfterValidator(_template)]
EncodingName = Annotated[str, AfterValidator(_encoding)]

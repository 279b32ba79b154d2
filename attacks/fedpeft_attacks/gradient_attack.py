"""One attack on one gradient, without a run: for research and for teaching."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.registry import Attack, attack_named
from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of_gradient
from fedpeft_attacks.views import Guess, NotApplicable, View, role_of

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.config.models import DataConfig

STAGE = "gradient"


def attack_gradient(
    attached: Attached,
    gradient: FloatVector,
    tokens: int,
    records: int = 0,
    attack: str | Attack = "sparse-recovery",
    data: DataConfig | None = None,
) -> Guess | NotApplicable:
    """Read the tokens of a batch from the gradient of its mean loss.

    The observer holds the base, the adapter with its present values and the gradient, nothing else. The
    attack ``sequences`` runs the model: it takes the adapter off the base and attaches one with these values
    again.

    Args:
        attached: the adapter on its base, with the values at which the gradient was taken.
        gradient: float32, shape ``(attached.layout.size,)``, in layout order.
        tokens: number of distinct tokens that the attacker assumes, special ones left out.
        records: number of records that the attacker assumes; 0: unknown. Attacks on whole records need it.
        attack: a name, or an attack of your own.
        data: settings of the data: template, weight of the prompt, longest record. None: every token of a
            record bears the same loss, behind the base's start token.

    Returns:
        The tokens in order of likelihood and, where the attack writes records, their texts as token ids; or
        why the attack has nothing to read.

    Raises:
        AuditError: the gradient does not fit the layout or is not finite, or no attack has this name.
    """
    chosen = attack_named(attack) if isinstance(attack, str) else attack
    known, method = knowledge_of_gradient(attached, data), attached.method.name
    view = View(STAGE, role_of(STAGE), method, attached.layout, gradient, known, tokens, records)
    return chosen(view)

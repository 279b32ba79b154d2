"""Read text from a gradient: with nothing in its way, and with the first layer left out.

The gradient of a low-rank adapter in layer 0 is a sum of known vectors, one per token: whoever holds the base
can ask of each token whether it was there. Without an adapter in layer 0 the same attack reads much less.
"""

from fedpeft import Record, attach, load_base, load_config, per_example_loss, tokenise
from fedpeft.data import collate
from fedpeft_attacks import Guess, attack_gradient

config = load_config(overrides={"base.threads": 1, "adapter.rank": 16})
base = load_base(config.base)
[example] = tokenise([Record("The patient asked", " for a letter.")], base.tokenizer, config.data)
secret = set(example.ids.tolist()) - set(base.tokenizer.all_special_ids)


def shared_gradient(skip_layers):
    """The adapter and the gradient of the record's loss, as an observer would see it."""
    attached = attach(base, config.adapter.model_copy(update={"skip_layers": skip_layers}), seed=0)
    per_example_loss(attached.model, collate([example], base.pad_id)).mean().backward()
    gradients = {name: parameter.grad for name, parameter in attached.parameters.items()}
    return attached, attached.layout.flatten(gradients)


for skip_layers in ((), (0,)):
    attached, gradient = shared_gradient(skip_layers)
    guess = attack_gradient(attached, gradient, tokens=len(secret), attack="sparse-recovery")
    where = "all layers" if not skip_layers else "all layers but the first"
    if isinstance(guess, Guess):
        hits = [token for token in guess.ranking[: len(secret)] if token in secret]
        words = base.tokenizer.convert_ids_to_tokens(hits)
        print(f"adapter on {where}: {len(hits)} of {len(secret)} tokens {words}")
    else:
        print(f"adapter on {where}: the attack does not apply, {guess.reason}")

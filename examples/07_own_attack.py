"""Write an attack of your own and try it beside one that fedpeft brings.

An attack sees a view: the values that an observer holds and what it knows beside them. It answers with a
guess, or says why it has nothing to read. It never sees the truth; comparing is the audit's business.
"""

import numpy as np

from fedpeft import Record, attach, load_base, load_config, per_example_loss, tokenise
from fedpeft.data import collate
from fedpeft_attacks import Attack, Guess, NotApplicable, View, attack_gradient, register_attack


def energy(view: View, seconds: float) -> Guess | NotApplicable:
    """Rank each token by how much of the gradient lies in the direction that the token leaves in it."""
    known, score = view.knowledge, np.zeros(len(view.knowledge.inputs))
    for name, rows in view.layout.split(view.values).items():
        module = name.removesuffix(".lora_B.weight")
        if module not in known.readers or module not in known.projections:
            continue
        traces = known.inputs @ known.projections[module].T  # shape (tokens, rank)
        traces /= np.linalg.norm(traces, axis=1, keepdims=True) + 1e-12
        score += np.square(traces @ rows.T).sum(axis=1)
    if not score.any():
        return NotApplicable("no module that reads tokens carries the adapter")
    ranking = [token for token in np.argsort(-score).tolist() if token not in known.special]
    return Guess(ranking, claimed=0, method="energy")


ENERGY = Attack(
    name="energy",
    needs=frozenset({"token inputs"}),
    solve=energy,
    text="Ranks tokens by the energy of the update in the direction that each leaves.",
)

register_attack("energy", ENERGY)  # a package does so by an entry point in the group `fedpeft.attacks`

config = load_config(overrides={"base.threads": 1, "adapter.rank": 16, "adapter.skip_layers": []})
base = load_base(config.base)
attached = attach(base, config.adapter, seed=0)
[example] = tokenise([Record("The patient asked", " for a letter.")], base.tokenizer, config.data)
secret = set(example.ids.tolist()) - set(base.tokenizer.all_special_ids)

per_example_loss(attached.model, collate([example], base.pad_id)).mean().backward()
gradients = {name: parameter.grad for name, parameter in attached.parameters.items()}
gradient = attached.layout.flatten(gradients)

for attack in ("energy", "span"):
    guess = attack_gradient(attached, gradient, tokens=len(secret), attack=attack)
    assert isinstance(guess, Guess)
    hits = secret & set(guess.ranking[: len(secret)])
    print(f"{guess.method}: {len(hits)} of {len(secret)} tokens among as many guesses")

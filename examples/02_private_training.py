"""Train one round under differential privacy and account for it in a ledger.

The order matters: the ledger is charged, durably, before the data are opened. What is charged stays charged,
whatever happens afterwards.
"""

import hashlib
from pathlib import Path

import numpy as np

import fedpeft
from fedpeft.exchange import up_plan
from fedpeft.privacy import plan_from_config

config = fedpeft.load_config(
    overrides={
        "base.threads": 1,
        "data.max_length": 32,
        "adapter.rank": 4,
        "federation.rounds": 5,
        "federation.local_steps": 2,
        "federation.batch_size": 16,
        "federation.optimiser": "sgd",
        "privacy.unit": "record",
        "privacy.epsilon": 8.0,
        "privacy.public_records": 500,  # a public lower bound; the true number of records is private
    }
)
base = fedpeft.load_base(config.base)
attached = fedpeft.attach(base, config.adapter, config.run.seed)

privacy = plan_from_config(config)  # solves for the noise that epsilon 8 over all five rounds needs
assert privacy is not None
print(
    f"noise {privacy.noise_multiplier:.2f} x clip: epsilon {privacy.epsilon():.2f} at delta {privacy.delta}"
)

ledger = fedpeft.Ledger(Path("ledger.sqlite"), fedpeft.Budget(total=8.0))
reservation = ledger.reserve("patient-notes", "spring", 1, privacy, config.federation.local_steps)
ledger.started(reservation)  # from here on the data may be opened, once

records = [fedpeft.Record(f"Patient {number} asked for", " a letter.") for number in range(500)]
examples = fedpeft.tokenise(records, base.tokenizer, config.data)
start = attached.get()
plan = fedpeft.LocalPlan.of(config.federation, round=1)
fedpeft.train_local(attached, examples, plan, np.random.default_rng(), privacy)

exchange = up_plan(config.exchange, private=True)
context = fedpeft.Context(bytes(16), 1, "hospital", bytes(32), "up")
update = fedpeft.Update(attached.layout, attached.get() - start, round=1, steps=plan.steps)
sent, _ = exchange.at(context).run(update, state={})
envelope = fedpeft.seal(sent, exchange.at(context), context, fedpeft.Signer.generate())
ledger.released(reservation, hashlib.sha256(envelope).hexdigest())

print(f"{len(envelope):,} bytes left the node; spent so far: epsilon {ledger.spent('patient-notes'):.2f}")

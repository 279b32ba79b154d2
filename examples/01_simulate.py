"""Run a federation on this machine, watch it, and read its tables.

Two invented organisations train one adapter on the embedded base; both directions are compressed.
"""

from fedpeft_simulations import simulate

settings = {
    "federation.nodes": 2,
    "federation.rounds": 2,
    "federation.local_steps": 2,
    "federation.batch_size": 8,
    "data.samples": 32,
    "data.test_samples": 16,
    "adapter.rank": 8,
    "run.baselines": [],  # no comparison with local and pooled training
    "audit.attacks": ["span"],
}

simulation = simulate("embedded", settings, out="runs/example", mode="overwrite")
for event in simulation:
    if event["event"] == "round":
        print(f"round {event['round']}: {event['replies']} updates, {event['bytes_up']:,} bytes up")

run = simulation.result()
print(run.rounds[["bytes_up", "bytes_down", "loss"]])
print(run.nodes[["updates", "bytes_up"]])
print(run.findings[["attack", "stage", "value", "verdict"]])
print(f"the adapter is in {run.adapter}; the audit's report in {run.path / 'audit' / 'report.html'}")

"""The node that an organisation runs: home folder, local training, outbox, ClientApp."""

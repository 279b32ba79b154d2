"""fedpeft: federated, privacy-audited fine-tuning of language model adapters.

Importing this package imports neither torch nor transformers; each room does that when it is used.
"""

import os

# libgomp's threads spin while they wait and starve every other process; it reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fedpeft._version import __version__

__all__ = ["__version__"]

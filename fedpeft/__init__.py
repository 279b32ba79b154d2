"""fedpeft: federated, privacy-audited fine-tuning of language model adapters.

Importing this package imports neither torch nor transformers; each room does that when it is used.
"""

from fedpeft._version import __version__

__all__ = ["__version__"]

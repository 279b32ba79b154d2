"""The audit: views, attacks, baselines, verdicts, and the report that a privacy officer reads.

The names of `__all__` are the public interface of the package and are loaded when they are first used;
`docs/api` has an example of each.
"""

from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft.plugins import register_attack
    from fedpeft_attacks.audit_suite import audit
    from fedpeft_attacks.gradient_attack import attack_gradient
    from fedpeft_attacks.registry import Attack
    from fedpeft_attacks.results.findings import Report
    from fedpeft_attacks.views import Guess, NotApplicable, View

__all__ = [
    "Attack",
    "Guess",
    "NotApplicable",
    "Report",
    "View",
    "attack_gradient",
    "audit",
    "register_attack",
]

__getattr__ = lazy(
    __name__,
    {
        "audit": "audit_suite",
        "attack_gradient": "gradient_attack",
        **dict.fromkeys(("Attack", "register_attack"), "registry"),
        "Report": "results.findings",
        **dict.fromkeys(("Guess", "NotApplicable", "View"), "views"),
    },
)


def __dir__() -> list[str]:
    return __all__

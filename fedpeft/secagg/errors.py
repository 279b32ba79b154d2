"""The errors of secure aggregation."""

from fedpeft.errors import PrivacyError


class SecureAggregationError(PrivacyError):
    """A message, request or setting with which a secure sum would not be secure, or not be a sum."""


class TermsRefused(SecureAggregationError):
    """Terms of a sum that are not those that this node agreed to.

    Attributes:
        rule: ``roster``, ``threshold`` or ``round``.
    """

    def __init__(self, rule: str, sentence: str) -> None:
        self.rule, self.sentence = rule, sentence
        super().__init__(sentence)

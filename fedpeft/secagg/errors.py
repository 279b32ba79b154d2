"""The error of secure aggregation."""

from fedpeft.errors import PrivacyError


class SecureAggregationError(PrivacyError):
    """A message, request or setting with which a secure sum would not be secure, or not be a sum."""

"""Bases: the frozen, possibly quantised models that adapters are trained for."""

from fedpeft.bases.files import content_hash
from fedpeft.bases.load import Base, forget_base, load_base, save_quantised
from fedpeft.bases.runtime import Device, describe_devices
from fedpeft.bases.source import base_folder

__all__ = [
    "Base",
    "Device",
    "base_folder",
    "content_hash",
    "describe_devices",
    "forget_base",
    "load_base",
    "save_quantised",
]

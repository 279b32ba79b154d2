"""Settings: TOML to frozen models, with one clear line for each mistake."""

from fedpeft.config.load import build_config, canonical, config_hash, dump_config, load_config
from fedpeft.config.models import Config

__all__ = ["Config", "build_config", "canonical", "config_hash", "dump_config", "load_config"]

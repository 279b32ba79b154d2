"""Extension points: names from settings to objects, and what is refused."""

import importlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedpeft import registry
from fedpeft.config import build_config
from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange import Codec, Decoded, DenseFp32, codec_named
from fedpeft.plugins import ADAPTER_METHODS, CODECS, FOREIGN_WIRE_IDS


class Plain(Codec):
    """A dense codec of another package that declares nothing."""

    name = "plain"
    wire_id = 64

    def fit(self, values, layout, support=None):
        return values

    def encode(self, values, layout, support=None):
        return values.astype("<f4").tobytes()

    def decode(self, payload, layout):
        return Decoded(layout, np.frombuffer(payload, "<f4"))

    def max_bytes(self, layout):
        return 4 * layout.size


@pytest.fixture
def plain():
    CODECS.register("plain", Plain)
    yield
    CODECS.forget("plain")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a package with entry points visible: what pip would write, without pip."""

    def install(package, points, **modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        importlib.invalidate_caches()
        registry._installed.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    yield install
    registry._installed.cache_clear()


def test_every_shipped_codec_is_there_with_a_number_of_its_own():
    codecs = dict(CODECS.items())
    assert list(codecs) == list(CODECS.shipped) and all(issubclass(one, Codec) for one in codecs.values())
    numbers = {name: one.wire_id for name, one in codecs.items() if name != "stochastic-ternary"}
    assert len(set(numbers.values())) == len(numbers)
    assert not set(numbers.values()) & set(FOREIGN_WIRE_IDS)


@pytest.mark.parametrize("way", ["up", "down"])
def test_an_unknown_codec_names_the_nearest(way):
    with pytest.raises(ConfigError, match=rf"exchange\.{way}\.codec' cannot be 'ternry'.*is 'ternary'.*int8"):
        build_config({"exchange": {way: {"codec": "ternry"}}})
    with pytest.raises(ExchangeError, match="unknown codec 'gzip'; there are auto, ternary"):
        codec_named("gzip")


def test_a_registered_codec_can_be_configured_and_taken_away(plain):
    assert build_config({"exchange": {"up": {"codec": "plain"}}}).exchange.up.codec == "plain"
    CODECS.forget("plain")
    with pytest.raises(ConfigError, match=r"exchange\.up\.codec"):
        build_config({"exchange": {"up": {"codec": "plain"}}})
    CODECS.register("plain", Plain)


def test_a_name_in_use_and_a_number_in_use_are_refused(plain):
    with pytest.raises(ExchangeError, match="a codec 'ternary' already"):
        CODECS.register("ternary", Plain)
    with pytest.raises(ExchangeError, match="a codec 'plain' already"):
        CODECS.register("plain", Plain)
    with pytest.raises(ExchangeError, match="has wire_id 64, and so has 'plain'"):
        CODECS.register("other", Plain)
    with pytest.raises(ExchangeError, match="has wire_id 0; 64 to 254 are for"):
        CODECS.register("other", DenseFp32)
    with pytest.raises(ExchangeError, match="is no Codec"):
        CODECS.register("other", dict)


def test_an_entry_point_adds_a_codec_that_is_imported_when_it_is_asked_for(installed):
    module = "from fedpeft.exchange.codecs.dense import DenseFp32\nclass Mine(DenseFp32):\n    wire_id = 99\n"
    installed("mine", "[fedpeft.codecs]\nmine = my_codec:Mine\n", my_codec=module)
    assert "mine" in CODECS and "my_codec" not in sys.modules
    assert build_config({"exchange": {"up": {"codec": "mine"}}}).exchange.up.codec == "mine"
    try:
        assert codec_named("mine").wire_id == 99
    finally:
        del CODECS._objects["mine"], sys.modules["my_codec"]


def test_a_plug_in_never_takes_the_place_of_another(installed):
    installed("thief", "[fedpeft.codecs]\nternary = thief_codec:Codec\n", thief_codec="raise SystemExit")
    with pytest.raises(ExchangeError, match="'thief' adds a codec 'ternary', but there is one already"):
        list(CODECS)
    assert codec_named("ternary").wire_id == 3


def test_two_plug_ins_of_one_number_are_refused(installed):
    module = "from fedpeft.exchange.codecs.dense import DenseFp32\nclass Mine(DenseFp32):\n    wire_id = 99\n"
    installed("twins", "[fedpeft.codecs]\none = twin_codec:Mine\ntwo = twin_codec:Mine\n", twin_codec=module)
    with pytest.raises(ExchangeError, match="'one' of package 'twins' has wire_id 99, and so has 'two'"):
        codec_named("one")


def test_a_plug_in_that_cannot_be_imported_is_an_error_that_names_it(installed):
    installed("broken", "[fedpeft.codecs]\nbroken = broken_codec:Codec\n", broken_codec="1 / 0")
    with pytest.raises(ExchangeError, match="'broken' of package 'broken' cannot be imported: ZeroDivision"):
        codec_named("broken")
    assert codec_named("sign").wire_id == 4


def test_settings_are_checked_without_an_import():
    script = (
        "import sys; from fedpeft.config.models import DirectionConfig; DirectionConfig(codec='int8'); "
        "print([m for m in sys.modules if m.startswith('fedpeft.exchange') or m in ('numpy', 'torch')])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_codec_that_says_nothing_of_sums_is_refused_in_a_secure_sum(plain):
    secure = {"secure": {"enabled": True}, "up": {"codec": "plain", "error_feedback": False}}
    with pytest.raises(ConfigError, match=r"set exchange\.up\.codec = 'ternary' or 'sign' \(given: 'plain'"):
        build_config({"exchange": secure, "federation": {"nodes": 4}})


@pytest.fixture
def modes():
    names = ("shards/even", "shards/odd")
    for name in names:
        ADAPTER_METHODS.register(name, replace(ADAPTER_METHODS["miss"], name=name))
    yield
    for name in names:
        ADAPTER_METHODS.forget(name)


def test_a_method_of_another_package_brings_its_own_modes(modes):
    assert build_config({"adapter": {"method": "shards", "aggregation": "odd"}}).adapter.key == "shards/odd"
    for adapter in ({"method": "shards"}, {"method": "shards", "aggregation": "naive"}):
        with pytest.raises(ConfigError, match=r"is not one of 'shards'.* there are even, odd"):
            build_config({"adapter": adapter})
    with pytest.raises(ConfigError, match=r"is not one of 'lora'.* there are frozen_a, frozen_b, stack"):
        build_config({"adapter": {"aggregation": "even"}})

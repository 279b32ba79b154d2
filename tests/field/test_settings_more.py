"""More mistakes in settings and in ``--out``: one line with the cure, and nothing is left on the disk."""

import json

import pytest

from fedpeft.config import load_config
from fedpeft.config.hints import OTHER_NAMES, paths, unknown_setting
from fedpeft.errors import ConfigError

VALUES = {
    "rounds=true": ("federation.rounds=true", "true and false are no numbers"),
    "a list with true": ("audit.rounds=[true]", "true and false are no numbers"),
    "an infinite rate": ("federation.lr=inf", "it must be finite"),
    "no number": ("adapter.alpha=nan", "it must be finite"),
    "a rate beyond float32": ("federation.lr=1e300", "it must be finite, and at most 3.4e+38"),
    "a number of 5000 digits": (f"federation.rounds={'9' * 5000}", "unable to parse"),
    "threads that no machine has": ("base.threads=100000", "less than or equal to 1024"),
    "an empty name in a list": ('adapter.target_modules=["q_proj", ""]', "an empty text names nothing"),
    "no source": ("data.source=", "data.source is empty"),
    "no base": ("base.model=' '", "base.model is empty"),
    "prompt and answer in one": ("data.prompt=completion", "a prompt would hold its answer"),
    "doubled braces": ("data.template={{prompt}} {{completion}}", "as {prompt}"),
    "braces of Jinja": ("data.template={{ prompt }}{{ completion }}", "as {prompt}"),
    "a table for a number": ("federation.lr={a = 1}", "federation.lr"),
    "a number for a table": ("adapter.ranks=4", "it must be a table of names and values"),
    "a section": ("federation=5", "'federation' is a section, not a setting"),
    "a section in capitals": ("FEDERATION.ROUNDS=3", "'federation.rounds'"),
    "a name of two settings": ("lr=3", "'federation.lr', 'federation.server.lr'"),
    "a name of another trainer": ("federation.learning_rate=1", "'federation.lr'"),
    "epochs": ("training.num_train_epochs=3", "'federation.local_steps'"),
    "a layer of no base": ("adapter.skip_layers=[7]", "names layer 7, but the layers of"),
    "a negative layer": ("adapter.skip_layers=[-1]", "names layer -1"),
    "a baseline of no setting": ('run.private={"nope.key" = 1}', "run.private: unknown setting 'nope.key'"),
    "a baseline that cannot be": ('run.private={"privacy.unit" = "record"}', "run.private: privacy.unit"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_mistake_in_a_value(fedpeft, settings, tmp_path, name):
    """Some ended in a traceback after the run directory was made, one in a crash of the process."""
    text, words = VALUES[name]
    options = [*settings(run__baselines='["private"]'), "--set", text]
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code == 2 and words in done.error, done.error
    assert len(done.error) < 400
    assert not (tmp_path / "run").exists()


FILES = {
    "a number of 5000 digits": (f"[federation]\nrounds = {'9' * 5000}\n", "4300 digits"),
    "tables in tables": ("a = " + "[" * 5000 + "]" * 5000, "recursion"),
    "another encoding": ("[run]\nname = 'caf\u00e9'\n".encode("latin-1"), "it is not UTF-8 text"),
    "a key twice": ("[run]\nseed = 1\nseed = 2\n", "line 3"),
    "no quotes": ("[run]\nname = mine\n", "line 2"),
    "YAML": ("run:\n  name: mine\n", "line 1"),
    "a date": ("[federation]\nrounds = 2024-01-01\n", "cannot be 2024-01-01"),
    "a section misspelt": ("[fedration]\nrounds = 3\n", "the nearest section is 'federation'"),
    "a list of sections": ("[[federation]]\nrounds = 3\n", "it must be a table of settings"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file(fedpeft, tmp_path, name):
    content, words = FILES[name]
    file = tmp_path / "mine.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = fedpeft("config", "show", file)
    assert done.code == 2 and words in done.error, done.error


def test_an_empty_file_leaves_the_defaults(fedpeft, tmp_path):
    (tmp_path / "mine.toml").touch()
    shown = fedpeft("config", "show", tmp_path / "mine.toml")
    assert shown.out.splitlines()[1:] == fedpeft("config", "show", "defaults").out.splitlines()[1:]


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("adapter.target_modules=q_proj, v_proj", "adapter.target_modules", ("q_proj", "v_proj")),
        ("audit.attacks=span,sequences", "audit.attacks", ("span", "sequences")),
        ("audit.rounds=1", "audit.rounds", (1,)),
        ("audit.rounds=middle,-1", "audit.rounds", ("middle", -1)),
        ("adapter.skip_layers=0", "adapter.skip_layers", (0,)),
        ("run.baselines=local_only", "run.baselines", ("local_only",)),
        ("adapter.skip_layers=[]", "adapter.skip_layers", ()),
        ("adapter.trainable_tokens=a,b", "adapter.trainable_tokens", ("a,b",)),
        ("adapter.trainable_tokens=7", "adapter.trainable_tokens", (7,)),
    ],
)
def test_one_item_and_items_between_commas_stand_for_a_list(text, path, value):
    config = load_config(overrides=[text])
    section, _, name = path.partition(".")
    assert getattr(getattr(config, section), name) == value


def test_a_template_has_line_breaks_as_a_shell_writes_them():
    """``--set 'data.template={a}\\n{b}'`` was trained with a backslash and an n."""
    assert load_config(overrides=[r"data.template={a}\n{b}\t."]).data.template == "{a}\n{b}\t."
    assert load_config(overrides=[r'data.template="{a}\n{b}"']).data.template == "{a}\n{b}"


def test_names_of_other_trainers_lead_to_settings_that_are_there():
    known = set(paths())
    assert set(OTHER_NAMES.values()) <= known
    assert not known & set(OTHER_NAMES)
    for name, setting in OTHER_NAMES.items():
        assert repr(setting) in unknown_setting(f"training.{name}")


def test_settings_of_an_older_run_with_empty_texts_are_still_read():
    assert load_config(overrides={"run.name": ""}).run.name == ""
    with pytest.raises(ConfigError, match=r"it must be finite"):
        load_config(overrides={"federation.lr": float("inf")})


PLACES = {
    "a file": ("file", "exists and is not a run"),
    "under a file": ("file/run", "cannot be made: Not a directory"),
    "a folder with something": ("full", "exists and is not a run"),
    "a link to nowhere": ("link", "exists and is not a run"),
    "a link to itself": ("loop", "exists and is not a run"),
    "a name that is too long": ("x" * 300, "cannot be made: File name too long"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_where_no_run_can_be(fedpeft, settings, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place, words = PLACES[name]
    before = sorted(tmp_path.rglob("*"))
    for option in ((), ("--overwrite",)):
        done = fedpeft("simulate", "--quiet", "--out", tmp_path / place, *settings(), *option)
        assert done.code == 8 and words in done.error and "--out" in done.error, done.error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("change", [{"federation__lr": 1e-300}, {"federation__participation": 0.01}])
def test_a_run_in_which_nothing_moves_or_one_node_is_never_asked_ends(fedpeft, settings, tmp_path, change):
    """Both ended in a traceback when their results were printed."""
    done = fedpeft("simulate", "--out", tmp_path / "run", *settings(**change))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["rounds"] == 1

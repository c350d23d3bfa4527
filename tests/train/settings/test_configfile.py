"""Every way a configuration can be wrong gets a message that names the key, the value and the way out."""

import tomllib
from pathlib import Path

import pytest
import tomli_w

from holdfast.errors import ConfigError
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config, load_config, parse_value, with_overrides


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {"learning_rat": 1e-4}}, ["optimizer.learning_rat", "did you mean learning_rate"]),
        ({"learning_rate": 1e-4}, ["'learning_rate'", "optimizer.learning_rate"]),
        ({"sedd": 1}, ["'sedd'", "seed"]),
        ({"qwertyuiop": 1}, ["'qwertyuiop'", "allowed:", "steps"]),
        ({"steps": "ten"}, ["steps = 'ten'", "wrong type", "integer"]),
        ({"steps": 1.5}, ["steps = 1.5", "wrong type"]),
        ({"seed": True}, ["seed = True", "wrong type"]),
        ({"engine": 3}, ["engine = 3", "wrong type"]),
        ({"engine": {"lag": -1}}, ["engine.lag = -1", "at least 0", "nearest valid value: 0"]),
        ({"sampling": {"top_p": 1.5}}, ["sampling.top_p = 1.5", "at most 1.0", "nearest valid value: 1.0"]),
        (
            {"sampling": {"temperature": 0}},
            ["sampling.temperature = 0", "greater than 0", "nearest valid value: 1e-06"],
        ),
        ({"sampling": {"min_p": 1.0}}, ["sampling.min_p = 1.0", "less than 1.0", "nearest valid value: 0.999"]),
        ({"model": {"dtype": "floot32"}}, ["model.dtype = 'floot32'", "did you mean float32?", "bfloat16"]),
        ({"log": {"trackers": ["wandbb"]}}, ["'wandbb'", "did you mean wandb?"]),
        ({"batch": {"minibatches": 7}}, ["minibatches = 7", "128 sequences", "nearest valid value: 8"]),
        ({"model": {"heads": 5}}, ["heads = 5", "hidden = 96", "nearest valid value: 4"]),
    ],
)
def test_says_what_is_wrong_and_what_would_be_right(values, words):
    with pytest.raises(ConfigError) as caught:
        build_config(values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("row", ["ppo", "rloo", "grpo", "dr_grpo"])
def test_a_baseline_over_groups_of_one_is_refused_with_the_fix(row):
    """The advantage R minus the mean of a group of one is 0: such a run trains and learns nothing."""
    alone = {"batch": {"group_size": 1}, "objective": {"preset": row}}
    with pytest.raises(
        ConfigError, match=r"run.toml: batch\.group_size = 1: .* zero in a group of one.* valid value: 2, or .*whiten"
    ):
        build_config(alone, origin="run.toml")
    build_config(alone | {"batch": {"group_size": 2}})
    build_config(alone | {"objective": {"preset": row, "advantage": {"kind": "whiten"}}})


def test_rows_without_groups_take_one_response():
    for row in ("reinforce_pp", "reinforce"):
        build_config({"batch": {"group_size": 1}, "objective": {"preset": row}})


def test_names_every_problem_at_once():
    with pytest.raises(ConfigError) as caught:
        build_config({"steps": "ten", "sedd": 1, "engine": {"lag": -1}})
    assert len(str(caught.value).splitlines()) == 3


def test_missing_file_and_bad_toml(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no configuration file .*absent.toml"):
        load_config(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML.*line 1"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)


def test_overrides_win_over_the_file(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("steps = 3\n[optimizer]\nlearning_rate = 1e-3\nbeta1 = 0.5\n[task]\nname = 'ledger'\nentries = 8\n")
    config = load_config(
        file, ["--optimizer.learning_rate", "1e-4", "--objective.preset=trm+ppo", "--objective.delta", "0.3"]
    )
    assert (config.steps, config.optimizer.learning_rate, config.optimizer.beta1) == (3, 1e-4, 0.5)
    assert (config.objective.preset, config.objective.options) == ("trm+ppo", {"delta": 0.3})
    assert config.task.options == {"entries": 8}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["steps", "3"], "unexpected argument 'steps'"),
        (["--steps"], "--steps needs a value"),
        (["--steps", "--seed", "1"], "--steps needs a value"),
        (["--steps.sub", "1"], "steps is a value, not a table"),
        (["--out", "runs/1"], r"unknown option --out: --help lists the command's own"),
        (["--learning_rate", "1"], r"did you mean .*optimizer\.learning_rate"),
        (["--optimiser.learning_rate", "1"], r"unknown option --optimiser\.learning_rate.*did you mean optimizer"),
    ],
)
def test_overrides_that_cannot_be_read(arguments, words):
    with pytest.raises(ConfigError, match=words):
        with_overrides({"steps": 3}, arguments)


def test_other_tables_are_overridden_where_they_are_known():
    assert with_overrides({}, ["--trl.beta", "0.1"], sections=("trl",)) == {"trl": {"beta": 0.1}}
    with pytest.raises(ConfigError, match=r"unknown option --trl\.beta"):
        with_overrides({}, ["--trl.beta", "0.1"])


def test_overrides_leave_the_given_values_alone():
    values = {"optimizer": {"beta1": 0.5}}
    with_overrides(values, ["--optimizer.beta1", "0.6"])
    assert values == {"optimizer": {"beta1": 0.5}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-4", 1e-4), ("true", True), ("[1, 2]", [1, 2]), ("ledger", "ledger"), ('"3"', "3"), ("-1", -1)],
)
def test_command_line_values_are_toml_or_text(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_resolved_configuration_round_trips_through_toml():
    config = build_config({"steps": 3, "task": {"name": "ledger", "entries": 8}, "objective": {"preset": "trm"}})
    assert build_config(tomllib.loads(tomli_w.dumps(config.to_dict()))) == config


def test_warm_start_key_changes_with_what_the_warm_start_depends_on_only():
    base = RunConfig()
    same = build_config({"objective": {"preset": "gspo"}, "steps": 3, "engine": {"lag": 8}})
    assert same.warm_start_key() == base.warm_start_key()
    later = build_config({"model": {"unpadded": False, "compile": True, "gradient_checkpointing": True}})
    assert later.warm_start_key() == base.warm_start_key()
    for values in ({"seed": 1}, {"task": {"name": "multiplication"}}, {"warm_start": {"clean_steps": 9}}):
        assert build_config(values).warm_start_key() != base.warm_start_key()

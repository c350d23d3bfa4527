"""Defaults that depend on the model and the machine, and numerics that cannot do what is asked."""

import tomllib

import pytest
import tomli_w
import torch

from holdfast.errors import ConfigError
from holdfast.launch.runfile import load_run_file, written
from holdfast.train.keep.folder import RunFolder
from holdfast.train.settings import defaults
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config
from holdfast.train.settings.defaults import (
    USUAL_WEIGHT,
    distribution_bytes,
    smallest_rate,
    with_defaults,
    with_exact_kl,
    with_steps,
)
from holdfast.train.settings.device import Machine

CPU, GPU, OLD_GPU = Machine(False, True), Machine(True, True), Machine(True, False)
REAL = {"model": {"source": "owner/model"}, "task": {"name": "jsonl", "path": "x.jsonl"}}


def chosen(values, machine):
    config = with_defaults(RunConfig.model_validate(values), machine)
    return {
        "precision": config.engine.precision,
        "rate": config.optimizer.learning_rate,
        "autocast": config.model.autocast,
        "best": config.checkpoint.best,
        "table": config.batch.without_replacement,
    }


def test_a_tiny_model_keeps_the_defaults_of_the_schema():
    tiny = {"precision": "int8", "rate": 2e-4, "autocast": False, "best": False, "table": False}
    for machine in (CPU, GPU, OLD_GPU):
        assert chosen({}, machine) == tiny
    assert with_defaults(RunConfig(), CPU) == RunConfig()


def test_a_model_that_was_given_has_those_of_real_models():
    real = {"precision": "bfloat16", "rate": 1e-6, "autocast": True, "best": True, "table": True}
    assert chosen(REAL, GPU) == real
    assert chosen(REAL, CPU) == real | {"autocast": False}
    assert chosen(REAL, OLD_GPU) == real | {"autocast": False, "precision": "float32"}
    assert chosen(REAL | {"lora": {"rank": 8}}, GPU) == real | {"rate": 1e-5}
    assert chosen(REAL | {"task": {"name": "ledger"}}, GPU) == real | {"table": False}
    assert chosen(REAL | {"model": {"source": "a/b", "dtype": "bfloat16"}}, GPU)["autocast"] is False


def test_what_was_written_stays_and_what_was_not_counts_as_unwritten():
    values = REAL | {
        "engine": {"precision": "int8"},
        "optimizer": {"learning_rate": 3e-6},
        "checkpoint": {"best": False},
        "batch": {"without_replacement": False},
    }
    values["model"] = {"source": "owner/model", "autocast": False}
    asked = {"precision": "int8", "rate": 3e-6, "autocast": False, "best": False, "table": False}
    assert chosen(values, GPU) == asked
    before = written(RunConfig.model_validate(REAL))
    assert written(with_defaults(RunConfig.model_validate(REAL), GPU)) == before


def test_threads_of_a_gpu(monkeypatch, fake_gpu):
    """Everything of a response's size stays on the CPU, so one thread would hold a GPU up."""
    for gpus, cores, expected in ((1, 4, 4), (1, 64, 8), (0, 64, 1)):
        fake_gpu(gpus)
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert build_config({}).threads == expected
    fake_gpu(1)
    assert build_config({"threads": 1}).threads == 1 == build_config({}, trainer="verl").threads


def test_resolved_values_are_written_and_read_back(tmp_path, fake_gpu):
    """A run begun on a GPU goes on with its numbers wherever it is resumed."""
    fake_gpu(1)
    config = build_config(REAL)
    folder = RunFolder.create(tmp_path / "run", config)
    kept = tomllib.loads(folder.config.read_text())
    assert kept["optimizer"]["learning_rate"] == 1e-6 and kept["model"]["autocast"] is True
    fake_gpu(0)
    assert RunFolder.open(tmp_path / "run")[1] == config
    assert build_config(kept) == config


def test_a_run_of_an_older_version_goes_on_as_it_began(tmp_path):
    """Its config.toml spells every default out, so a key that it lacks is newer than the run."""
    folder = RunFolder.create(tmp_path / "run", build_config(REAL))
    kept = tomllib.loads(folder.config.read_text())
    del kept["batch"]["without_replacement"], kept["checkpoint"]["best"]
    folder.config.write_text(tomli_w.dumps(kept))
    config = RunFolder.open(tmp_path / "run")[1]
    assert not config.batch.without_replacement and not config.checkpoint.best


def test_verl_is_taken_to_have_gpus(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[model]\nsource = "a/b"\n')
    assert load_run_file(path, "verl").config.model.autocast
    assert not load_run_file(path, "trl").config.model.autocast or torch.cuda.is_available()


def moved(rate, steps):
    """Share of bfloat16 weights of standard deviation .02 that AdamW changes at all."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter((0.02 * torch.randn(20_000, generator=generator)).bfloat16())
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return float((weight.detach() != before).float().mean())


def test_below_the_smallest_rate_half_of_the_weights_never_move():
    """The rule against what AdamW does: every step moves a weight by the rate, and is rounded by itself."""
    least = smallest_rate()
    assert least == 2.0**-15  # .0135 lies in [2^-7, 2^-6): neighbours are 2^-14 apart, half of that is 2^-15
    assert moved(0.99 * least, 20) < 0.5 < moved(1.01 * least, 20)
    assert moved(1e-6, 20) < 0.03
    median = float((0.02 * torch.randn(200_000, generator=torch.Generator().manual_seed(1))).abs().median())
    assert median == pytest.approx(USUAL_WEIGHT, rel=0.02)


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 3e-5])
def test_bfloat16_weights_that_cannot_move_are_refused_with_the_fix(rate):
    values = {"model": {"dtype": "bfloat16"}, "optimizer": {"learning_rate": rate}}
    with pytest.raises(ConfigError, match=r"(?s)bfloat16.*trains next to nothing.*3\.1e-05.*model\.autocast = true"):
        build_config(values, origin="run.toml")
    build_config(values | {"lora": {"rank": 8}})
    build_config(values | {"optimizer": {"learning_rate": 3.2e-5}})
    build_config(values, trainer="trl")  # float32 weights whatever dtype says
    build_config(values, trainer="verl")


def test_exact_kl_is_measured_where_it_is_small():
    # 128 responses x 256 tokens x 30 of vocabulary x 4 bytes = 3.9 MB.
    config = build_config({})
    assert distribution_bytes(config, 30) == 4 * 30 * 256 * 128
    decided, notes = with_exact_kl(config, 30, needed=False)
    assert decided.engine.exact_kl is True and notes == ()


def test_exact_kl_is_off_above_the_stated_size_and_says_so():
    config = build_config({"sampling": {"max_tokens": 1024}})
    decided, notes = with_exact_kl(config, 151_936, needed=False)
    # 4 x 151,936 x 1024 x 128 = 79.7e9
    assert decided.engine.exact_kl is False
    assert "79.7 GB a step" in notes[0] and "engine.exact_kl = true" in notes[0] and "151936" in notes[0]


def test_the_size_at_which_exact_kl_is_left_out():
    config = build_config({"sampling": {"max_tokens": 1}, "batch": {"prompts": 1, "group_size": 2}})
    assert with_exact_kl(config, 250_000_000, needed=False)[0].engine.exact_kl is True  # 2e9 bytes
    assert with_exact_kl(config, 250_000_001, needed=False)[0].engine.exact_kl is False


def test_exact_kl_that_is_asked_for_or_needed(monkeypatch):
    values = {"sampling": {"max_tokens": 1024}}
    asked, plain = build_config(values | {"engine": {"exact_kl": True}}), build_config(values)
    monkeypatch.setattr(defaults, "total_memory", lambda: 10**11)
    for config, needed in ((asked, False), (plain, True)):
        decided, notes = with_exact_kl(config, 151_936, needed=needed)
        assert decided.engine.exact_kl is not False and "79.7 GB" in notes[0]
    monkeypatch.setattr(defaults, "total_memory", lambda: 24 * 10**9)
    with pytest.raises(ConfigError, match=r"79\.7 GB.*this machine has 24 GB: set engine\.exact_kl = false"):
        with_exact_kl(asked, 151_936, needed=False)
    with pytest.raises(ConfigError, match=r"79\.7 GB.*lower sampling\.max_tokens"):
        with_exact_kl(plain, 151_936, needed=True)
    off = build_config(values | {"engine": {"exact_kl": False}})
    assert with_exact_kl(off, 151_936, needed=False) == (off, ())


def test_steps_under_way_count():
    config = build_config({"async": {"staleness": 3}})
    assert distribution_bytes(config, 30) == 4 * distribution_bytes(build_config({}), 30)
    _, notes = with_exact_kl(config, 151_936, needed=False)
    assert "x 4 steps under way" in notes[0]


def test_steps_from_passes_over_the_table():
    table = {"task": {"name": "jsonl", "path": "x"}, "data_epochs": 2.5, "batch": {"prompts": 16}}
    config = build_config(table)
    assert config.batch.without_replacement
    assert with_steps(config, 100).steps == 16  # 250 / 16 = 15.6
    assert with_steps(build_config(table | {"steps": 9}), 100).steps == 9
    assert with_steps(build_config(table | {"steps": 90}), 100).steps == 16
    plain = build_config({"steps": 7})
    assert with_steps(plain, 100) is plain


def test_derived_steps_are_derived_again_after_a_resume(tmp_path):
    """config.toml must not turn the default into a limit that nobody wrote."""
    config = build_config({"task": {"name": "jsonl", "path": "x"}, "data_epochs": 20, "batch": {"prompts": 1}})
    folder = RunFolder.create(tmp_path / "run", config)
    assert "steps" not in tomllib.loads(folder.config.read_text())
    assert with_steps(RunFolder.open(tmp_path / "run")[1], 100).steps == 2000
    decided = with_steps(config, 100)
    folder.write_config(decided)
    assert with_steps(RunFolder.open(tmp_path / "run")[1], 100).steps == 2000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data_epochs": 1.0}, "data_epochs: task 'ledger' makes up its problems"),
        ({"batch": {"without_replacement": True}}, "batch.without_replacement: task 'ledger' makes up"),
        (
            {"task": {"name": "jsonl"}, "data_epochs": 1.0, "batch": {"without_replacement": False}},
            "data_epochs = 1 counts passes.*nearest valid value: true",
        ),
        ({"async": {"device": "gpu"}}, "async.device = 'gpu' does not have the form"),
        ({"async": {"device": "cpu"}, "engine": {"kind": "vllm"}}, r'async.device = "cpu" with engine.kind = "vllm"'),
        ({"checkpoint": {"push_to_hub": "model"}}, "checkpoint.push_to_hub = 'model' does not have the form"),
        ({"model": {"attention": "sdp"}}, "model.attention = 'sdp'.*did you mean sdpa"),
        ({"optimizer": {"kind": "adam"}}, "optimizer.kind = 'adam'.*did you mean adamw"),
    ],
)
def test_what_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words):
        build_config(values)

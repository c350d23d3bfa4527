"""One file as three trainers see it, and what each refuses by name."""

import pytest
import tomli_w

from holdfast.errors import ConfigError
from holdfast.launch import trl, verl
from holdfast.launch.data import counted, training_problems
from holdfast.launch.runfile import RunFile, load_run_file, refuse_unhonoured, written
from holdfast.rollout.models import character_tokenizer
from holdfast.tasks import get_task
from holdfast.train.sampling.data import PromptSource
from holdfast.train.sampling.sampler import step_prompts
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.configfile import build_config
from holdfast.train.settings.section import keys_of

VALUES = {
    "steps": 3,
    "sampling": {"max_tokens": 64},
    "local": {"engine": {"precision": "bfloat16"}, "sampling": {"max_tokens": 32}},
    "trl": {"beta": 0.1},
    "verl": {"trainer": {"nnodes": 2}},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(VALUES))
    return path


def test_each_trainer_reads_the_shared_tables_and_its_own(file):
    local, by_trl, by_verl = (load_run_file(file, name) for name in ("local", "trl", "verl"))
    assert local.own == {} and by_trl.own == {"beta": 0.1} and by_verl.own == {"trainer": {"nnodes": 2}}
    assert local.config.engine.precision == "bfloat16" and local.config.sampling.max_tokens == 32
    assert by_trl.config == by_verl.config
    assert by_trl.config.sampling.max_tokens == 64
    assert written(by_trl.config) == {"steps": 3, "sampling.max_tokens": 64}


def test_overrides_reach_every_table(file):
    chosen = load_run_file(file, "verl", ["--verl.trainer.nnodes", "8", "--steps", "7"])
    assert chosen.own["trainer"]["nnodes"] == 8 and chosen.config.steps == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trl": 3}, r"trl = 3 must be a table"),
        ({"stepz": 1}, "unknown key 'stepz'"),
        ({"verl2": {}}, "unknown key 'verl2'"),
    ],
)
def test_bad_files(change, words, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(change))
    with pytest.raises(ConfigError, match=words):
        load_run_file(path, "trl")


def test_key_of_a_name_that_python_has_not():
    config = build_config({"async": {"staleness": 1}})
    assert written(config) == {"async.staleness": 1}


def test_refusal_names_key_value_what_is_possible_and_why():
    config = build_config({"engine": {"lag": 2}, "steps": 3, "threads": 4})
    with pytest.raises(ConfigError) as error:
        refuse_unhonoured(config, "verl", {"steps": None, "engine.lag": (0,)}, {"threads": "Ray places its workers"})
    message = str(error.value)
    assert "backend 'verl' cannot honour\n" in message
    assert "  engine.lag = 2 (only 0): it has nothing of the kind\n" in message
    assert "  threads = 4: Ray places its workers\n" in message
    assert "steps" not in message and "[local.engine]" in message


REFUSED_BY_BOTH = [
    ({"warm_start": {"clean_steps": 5}}, "warm_start.clean_steps = 5"),
    ({"engine": {"exact_kl": True}}, "engine.exact_kl = True"),
    ({"model": {"source": "owner/model", "chat": True, "unpadded": True}}, "model.unpadded = True"),
    ({"async": {"staleness": 2}}, "async.staleness = 2"),
    ({"sampling": {"top_p": 0.9}}, "sampling.top_p = 0.9"),
    ({"sampling": {"top_k": 20}}, "sampling.top_k = 20"),
    ({"sampling": {"min_p": 0.1}}, "sampling.min_p = 0.1"),
    ({"sampling": {"trainer_support": "raw"}}, "sampling.trainer_support = 'raw'"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED_BY_BOTH, ids=[words for _, words in REFUSED_BY_BOTH])
def test_what_neither_trl_nor_verl_can_do(values, words, folder):
    with pytest.raises(ConfigError, match=r"backend 'trl' cannot honour\n  " + words):
        trl.grpo_settings(RunFile(build_config(values), {}), folder)
    with pytest.raises(ConfigError, match=r"backend 'verl' cannot honour\n  " + words):
        verl.overrides(RunFile(build_config(VERL | values), {}), folder)


VERL = {
    "model": {"source": "owner/model", "chat": True},
    "batch": {"max_prompt_tokens": 512},
    "task": {"name": "ledger"},
}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threads": 2}, "threads = 2: Ray places its workers"),
        ({"engine": {"lag": 1}}, r"engine.lag = 1 \(only 0\)"),
        ({"engine": {"top_logprobs": 20}}, "engine.top_logprobs = 20"),
        ({"engine": {"precision": "int8"}}, r"engine.precision = 'int8' \(only 'float32', 'bfloat16'\)"),
        ({"model": {"hidden": 64}}, "model.hidden = 64: .*give model.source"),
        ({"optimizer": {"schedule": "linear"}}, r"optimizer.schedule = 'linear' \(only 'constant', 'cosine'\)"),
        ({"evaluation": {"samples": 4}}, r"evaluation.samples = 4 \(only 1\): .*val_kwargs.n"),
        ({"checkpoint": {"push_to_hub": "a/b"}}, "checkpoint.push_to_hub = 'a/b': .*model_merger"),
        ({"checkpoint": {"best": True}}, r"checkpoint.best = True \(only False\)"),
        (
            {"model": {"source": "a/b", "chat": True, "attention": "sdpa"}},
            "model.attention = 'sdpa': .*override_config",
        ),
        ({"model": {"source": "a/b", "chat": False}}, r"model.chat = False \(only True\)"),
        ({"log": {"rollouts_every": 5}}, r"log.rollouts_every = 5 \(only 0, 1\)"),
        ({"objective": {"preset": "adaptive_entropy"}}, "changes its entropy coefficient"),
        ({"objective": {"preset": "trm_max", "detector": "kl_exact"}}, "needs kl_rollout"),
        ({"batch": {"max_prompt_tokens": 512, "micro_batch_tokens": 600}}, "batch.micro_batch_tokens of at least 768"),
        (
            {"batch": {"max_prompt_tokens": 512, "prompts": 6, "group_size": 8, "minibatches": 4}},
            "batch.minibatches that divides",
        ),
        ({"model": {}, "batch": {}}, "(?s)needs\n  model.source.*model.chat = true.*batch.max_prompt_tokens"),
    ],
)
def test_what_verl_cannot_do(values, words, folder):
    with pytest.raises(ConfigError, match=words):
        verl.overrides(RunFile(build_config(VERL | values), {}), folder)


@pytest.mark.parametrize(
    ("values", "own", "words"),
    [
        ({"evaluation": {"greedy": True}}, {}, "evaluation.greedy = True .only False.: TRL evaluates by sampling"),
        ({"engine": {"precision": "int8"}}, {"use_vllm": True}, "engine.precision = 'int8': vLLM is the engine here"),
        ({"batch": {"group_size": 1}}, {}, "batch.group_size = 1"),
        ({"evaluation": {"samples": 4}}, {}, r"evaluation.samples = 4 \(only 1\)"),
        ({"checkpoint": {"best": True}}, {}, r"checkpoint.best = True \(only False\)"),
        (
            {"optimizer": {"schedule": "linear", "min_ratio": 0.1}},
            {},
            "optimizer.min_ratio = 0.1 with schedule = 'linear'.*valid value: 0, or schedule = 'cosine'",
        ),
        ({}, {"max_steps": 3, "seed": 1}, r"\[trl\] max_steps, seed: decided by the run file"),
    ],
)
def test_what_trl_cannot_do(values, own, words, folder):
    with pytest.raises(ConfigError, match=words):
        trl.grpo_settings(RunFile(build_config(values), own), folder)


def test_uneven_split_over_processes(folder):
    with pytest.raises(ConfigError, match="128 sequences an optimiser step do not split over 3 processes"):
        trl.grpo_settings(RunFile(build_config({}), {}), folder, world=3)


def test_own_key_that_the_run_file_decides(folder):
    with pytest.raises(ConfigError, match=r"\[verl\] trainer.total_training_steps: decided by the run file"):
        verl.overrides(RunFile(build_config(VERL), {"trainer": {"total_training_steps": 3}}), folder)


def test_trl_counts_sequences(folder):
    values = {
        "steps": 5,
        "batch": {
            "prompts": 8,
            "group_size": 4,
            "minibatches": 2,
            "epochs": 3,
            "max_prompt_tokens": 56,
            "micro_batch_tokens": 640,
        },
        "sampling": {"max_tokens": 200},
        "evaluation": {"every": 2},
        "checkpoint": {"every": 4},
    }
    # 8 x 4 = 32 sequences in 2 optimiser steps of 16, on 2 processes 8 each; 640 // (200 + 56) = 2 sequences a pass.
    settings = trl.grpo_settings(RunFile(build_config(values), {}), folder, world=2)
    expected = {
        "max_steps": 5 * 2 * 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 8,
        "num_iterations": 3,
        "num_generations": 4,
        "eval_steps": 12,
        "save_steps": 24,
    }
    assert {name: settings[name] for name in expected} == expected
    # A step of one process is the same sequences in twice as many micro-batches.
    alone = trl.grpo_settings(RunFile(build_config(values), {}), folder)
    assert alone["per_device_train_batch_size"] * alone["gradient_accumulation_steps"] == 16


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({}, {"lr_scheduler_type": "constant_with_warmup"}),
        ({"schedule": "linear"}, {"lr_scheduler_type": "linear"}),
        ({"schedule": "cosine"}, {"lr_scheduler_type": "cosine"}),
        (
            {"schedule": "cosine", "min_ratio": 0.1, "kind": "adamw8bit"},
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
                "optim": "adamw_torch_8bit",
            },
        ),
    ],
)
def test_schedules_by_transformers_names(optimizer, expected, folder):
    settings = trl.grpo_settings(RunFile(build_config({"optimizer": optimizer}), {}), folder)
    names = ("lr_scheduler_type", "lr_scheduler_kwargs", "optim")
    assert {name: settings[name] for name in names if name in settings} == expected


def test_schedules_by_verls_names(folder):
    optimizer = {"schedule": "cosine", "min_ratio": 0.1, "kind": "adamw8bit"}
    told = verl.overrides(RunFile(build_config(VERL | {"optimizer": optimizer}), {}), folder)
    prefix = "actor_rollout_ref.actor.optim."
    for name, value in {
        "lr_scheduler_type": "cosine",
        "min_lr_ratio": "0.1",
        "optimizer": "AdamW8bit",
        "optimizer_impl": "torchao.optim",
    }.items():
        assert f"{prefix}{name}={value}" in told
    plain = verl.overrides(RunFile(build_config(VERL), {}), folder)
    assert not [line for line in plain if line.startswith((f"{prefix}lr_sched", f"{prefix}optimizer"))]


@pytest.mark.parametrize(
    ("model", "words"),
    [({"autocast": True}, "bf16"), ({"autocast": False}, "fp32"), ({"dtype": "bfloat16"}, "bf16"), ({}, "bf16")],
)
def test_what_verl_multiplies_in(model, words, folder):
    """Over float32 weights in each case; bfloat16 where nothing is said, as verl's workers are GPUs."""
    values = VERL | {"model": VERL["model"] | model}
    told = verl.overrides(RunFile(build_config(values, trainer="verl"), {}), folder)
    assert [line for line in told if f"mixed_precision={{param_dtype:{words}," in line]


def test_epochs_come_to_the_same_steps_and_problems_everywhere(folder):
    """300 problems, 2 passes, 16 a step: ceil(600 / 16) = 38 steps; every problem once in the first 300."""
    problems = "examples/launch/problems.jsonl"
    table = {"name": "jsonl", "path": problems, "eval_path": problems}
    config = counted(build_config({"task": table, "data_epochs": 2}))
    assert config.steps == 38 and trl.grpo_settings(RunFile(config, {}), folder)["max_steps"] == 38
    source = PromptSource(
        get_task("jsonl", path=problems, eval_path=problems),
        character_tokenizer("0123456789+="),
        max_tokens=99,
        chat=False,
    )
    ours = [p for step in range(1, 39) for p in step_prompts(config, source, step).problems]
    theirs = training_problems(config, lambda *drawn: (), lambda: source.task.pool("train"))
    assert ours == theirs and len(theirs) == 608
    assert len({p.prompt for p in theirs[:300]}) == len({p.prompt for p in theirs[300:600]}) == 300


def test_every_key_of_the_file_is_honoured_or_refused(folder):
    """A key that is new in the run file is refused until somebody has thought about it: no key is silently dropped."""
    for honoured in (trl.HONOURED, verl.HONOURED):
        known = {key.partition(".")[0] for key in honoured}
        assert known <= set(keys_of(RunConfig)), known - set(keys_of(RunConfig))
        for key in honoured:
            table, _, name = key.partition(".")
            field = keys_of(RunConfig)[table].annotation
            assert name in ("", "*") or name in keys_of(field), key


def test_the_guard_goes_to_every_trainer(folder):
    values = VERL | {"guard": {"on": True, "halt_on": "critical"}}
    told = verl.overrides(RunFile(build_config(values), {}), folder)
    key = "+actor_rollout_ref.actor.policy_loss.guard."
    assert {f"{key}halt_on=critical", f"{key}first=20", f"{key}every=5"} <= set(told)
    off = verl.overrides(RunFile(build_config(VERL), {}), folder)
    assert not [line for line in off if line.startswith(key)]


@pytest.mark.parametrize(("key", "value"), [("brake", "certificate"), ("brake_in_a_row", 2)])
def test_a_brake_is_refused_by_trainers_that_cannot_step_back(folder, key, value):
    guard = {"guard": {key: value, "brake_share": 0.5}, "batch": {"prompts": 16, "group_size": 4}}
    said = rf"guard\.{key} = {value!r}.*: (TRL|verl) cannot take a step back"
    with pytest.raises(ConfigError, match=said):
        verl.overrides(RunFile(build_config(VERL | guard), {}), folder)
    with pytest.raises(ConfigError, match=said):
        trl.grpo_settings(RunFile(build_config(guard), {}), folder)
    harmless = VERL | {"guard": {"brake": "off"}}
    assert verl.overrides(RunFile(build_config(harmless), {}), folder)

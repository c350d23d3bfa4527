"""What is said at the start, and the refusal of what does not fit, before anything is loaded."""

import pytest

from holdfast.errors import ConfigError
from holdfast.tasks import get_task
from holdfast.train.settings.memory import free_memory
from holdfast.train.settings.objective import objective_of
from holdfast.train.show import banner
from holdfast.train.show.banner import introduce, prompt_tokens


def said(config):
    return introduce(config, get_task(config.task.name, **config.task.options), objective_of(config))


def test_a_few_lines_say_what_the_run_is(small_config, monkeypatch):
    monkeypatch.setattr(banner, "free_memory", lambda device: 3_210_000_000)
    lines = said(small_config()).splitlines()
    assert [line.split()[0] for line in lines] == ["model", "engine", "objective", "data", "batch", "memory"]
    assert "Qwen3, 2 layers of width 32, 0.0" in lines[0] and "M parameters, float32 on cpu" in lines[0]
    assert "embedded: int8 copy of the float32 trainer, 1 updates behind" in lines[1]
    assert lines[2].endswith("trm_max+ppo") and lines[3].endswith("ledger")
    assert lines[4].endswith("4 steps of 4 prompts x 4 responses of up to 20 tokens")
    assert "about 0.0" in lines[5] and lines[5].endswith("3.2 GB free")


def test_what_does_not_fit_is_refused_before_anything_is_written(small_run, monkeypatch):
    monkeypatch.setattr(banner, "free_memory", lambda device: 10_000)
    with pytest.raises(ConfigError, match=r"needs about 0\.0.* are free on this machine.*model.memory_check = false"):
        small_run("refused")


def test_the_check_can_be_switched_off(small_config, monkeypatch):
    monkeypatch.setattr(banner, "free_memory", lambda device: 10_000)
    assert said(small_config("--model.memory_check", "false")).endswith("0.0 GB free")
    monkeypatch.setattr(banner, "free_memory", lambda device: None)
    assert said(small_config()).endswith("how much is free is not known")


def test_a_model_whose_shape_cannot_be_had_is_not_estimated(small_config):
    assert "memory    not estimated: the model's config.json" in said(small_config("--model.source", "no/model"))


def test_prompts_of_the_first_step_are_the_measure(small_config):
    """A character is a token of a tiny model, and one begins; of a real one a token has three."""
    task = get_task("ledger", entries=1)
    longest = prompt_tokens(small_config(), task) - 1
    assert longest in {len(p.prompt) for p in task.problems(0, 200, "train")}
    assert prompt_tokens(small_config("--model.source", "a/b"), task) == -(-longest // 3) + 8
    assert prompt_tokens(small_config("--batch.max_prompt_tokens", "2"), task) == 2


def files(root, **contents):
    for name, text in contents.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_free_memory_is_what_kernel_and_control_groups_leave(tmp_path):
    assert free_memory("cpu", tmp_path) is None
    files(tmp_path, proc__meminfo="MemTotal: 100 kB\nMemAvailable:   5000 kB\n")
    assert free_memory("cpu", tmp_path) == 5000 * 1024
    files(tmp_path, proc__self__cgroup="0::/a/b\n")
    files(tmp_path / "sys/fs/cgroup/a/b", memory_dot_max="max", memory_dot_current="77")
    assert free_memory("cpu", tmp_path) == 5000 * 1024
    stat = "anon 5\ninactive_file 30\n"
    files(tmp_path / "sys/fs/cgroup/a", memory_dot_max="1000", memory_dot_current="600", memory_dot_stat=stat)
    assert free_memory("cpu", tmp_path) == 1000 - 600 + 30


def test_this_machine_says_how_much_is_free():
    assert free_memory("cpu") > 10**7

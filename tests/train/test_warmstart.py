"""The supervised phase: what it learns, what it is made of, and that it is made once."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.errors import ConfigError, DataError
from holdfast.tasks import Problem, get_task
from holdfast.train.keep.checkpoint import load_weights, save_model
from holdfast.train.keep.folder import RunFolder
from holdfast.train.policy.forward import Policy
from holdfast.train.sampling.data import PromptSource
from holdfast.train.setup import build_model, set_up
from holdfast.train.warmstart import warm_start


def test_loss_falls_and_the_sloppy_teacher_is_followed(small_config):
    config = small_config("--warm_start.clean_steps", "40", "--warm_start.sloppy_steps", "5")
    task = get_task("ledger", entries=1)
    model, tokenizer = build_model(config, task.alphabet)
    seen = []
    asked = PromptSource(task, tokenizer, max_tokens=20, chat=False)
    encode = asked.encode_solution
    asked.encode_solution = lambda problem, text: seen.append(text) or encode(problem, text)
    losses = []
    warm_start(Policy(model), asked, config, lambda done, total, loss: losses.append((done, total, loss)))
    assert [done for done, _, _ in losses] == list(range(1, 46)) and {total for _, total, _ in losses} == {45}
    assert losses[0][2] > 2.0 and losses[39][2] < 0.6 * losses[0][2]
    # Entries of one digit: a clean chain repeats it ("a7:07;#07"); one in ten sloppy ones does not.
    wrong = [not text.endswith(f"#0{text[1]}") for text in seen]
    size = config.warm_start.batch_size
    assert not any(wrong[: 40 * size]) and 0 < sum(wrong[40 * size :]) < 0.3 * 5 * size


def test_made_once_and_loaded_exactly(small_config, tmp_path):
    config = small_config("--warm_start.clean_steps", "3", "--warm_start.sloppy_steps", "0")
    calls = []
    runs = [
        set_up(
            config, RunFolder(tmp_path / str(number)), resume=False, warm_starts=tmp_path / "warm",
            progress=lambda done, total, loss: calls.append(done),
        )
        for number in range(2)
    ]  # fmt: skip
    assert calls == [1, 2, 3] and [path.name for path in (tmp_path / "warm").iterdir()] == [config.warm_start_key()]
    first, second = (run.policy.model.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        next(iter(runs[0].policy.model.parameters())).add_(1.0)
    load_weights(runs[0].policy.model, tmp_path / "warm" / config.warm_start_key())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_that_are_not_whole_are_never_put_into_a_model(small_config, tmp_path):
    model, tokenizer = build_model(small_config(), "0123")
    save_model(tmp_path, model, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for broken in ({k: v for k, v in weights.items() if "up_proj" not in k}, weights | {"x": torch.zeros(1)}):
        save_file(broken, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(DataError, match=r"cannot be loaded into this model: the folder (lacks|holds) weights"):
            load_weights(model, tmp_path)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_interrupted_warm_start_leaves_no_half_model(small_config, tmp_path):
    def stop(done, total, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        set_up(small_config(), RunFolder(tmp_path), resume=False, warm_starts=tmp_path / "warm", progress=stop)
    assert not (tmp_path / "warm").exists()


def test_a_problem_without_solution_is_named(small_config):
    config = small_config()
    task = get_task("ledger", entries=1)
    model, tokenizer = build_model(config, task.alphabet)
    source = PromptSource(task, tokenizer, max_tokens=20, chat=False)
    draw = source.draw
    source.draw = lambda *arguments: type(draw(*arguments))((Problem("a1=", "01", None, "ledger"),), ((1, 5, 6, 7),))
    with pytest.raises(ConfigError, match=r"no solution for prompt 'a1='.*warm_start.clean_steps = 0"):
        warm_start(Policy(model), source, config, lambda *progress: None)

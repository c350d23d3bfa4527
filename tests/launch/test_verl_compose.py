"""What `holdfast launch --backend verl` writes, against verl itself: its composed config, its data set, its reward."""

import pytest

pytest.importorskip("verl")
pytestmark = pytest.mark.filterwarnings("ignore")

from holdfast.errors import ConfigError  # noqa: E402
from holdfast.integrations.verl.names import hydra_value  # noqa: E402
from holdfast.launch import verl  # noqa: E402
from holdfast.launch.runfile import load_run_file  # noqa: E402
from launch.conftest import EXAMPLES  # noqa: E402


def composed(file, *overrides):
    from holdfast.integrations.verl.check.composed import composed

    return composed(verl.overrides(load_run_file(file, "verl", overrides), verl.Path("runs/x")))


def test_cluster_example(folder):
    config = composed(EXAMPLES / "cluster_8x8.toml")
    actor, rollout, data = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.data
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (8, 8)
    assert (data.train_batch_size, rollout.n, actor.ppo_mini_batch_size, actor.ppo_epochs) == (128, 8, 64, 1)
    assert (data.max_prompt_length, data.max_response_length) == (2048, 16384)
    assert (rollout.prompt_length, rollout.response_length, rollout.name) == (2048, 16384, "vllm")
    assert actor.ppo_max_token_len_per_gpu == rollout.log_prob_max_token_len_per_gpu == 18432
    assert (actor.optim.lr, actor.optim.lr_warmup_steps, actor.optim.weight_decay) == (1e-6, 10, 0.01)
    assert list(actor.optim.betas) == [0.9, 0.95] and actor.optim.override_optimizer_config.eps == 1e-8
    assert actor.grad_clip == 1.0 and actor.fsdp_config.mixed_precision.param_dtype == "bf16"
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen3-8B"
    assert config.trainer.v1.trainer_mode == "holdfast_sync" and rollout.calculate_log_probs
    assert (config.trainer.total_training_steps, config.trainer.test_freq, config.trainer.save_freq) == (500, 20, 50)
    assert list(config.trainer.logger) == ["console", "tensorboard"]
    assert actor.policy_loss.objective == "trm+sspo+kl_cov"
    assert actor.policy_loss.records == str(folder / "runs/x/rollouts")
    assert config.algorithm.adv_estimator == "grpo" and config.algorithm.norm_adv_by_std_in_grpo


def test_cluster_example_has_an_objective_and_no_trap(folder):
    lines = verl.overrides(load_run_file(EXAMPLES / "cluster_8x8.toml", "verl"), folder)
    (objective,) = verl.composed_report(lines)
    assert "M: max_t k2_t(θ‖rollout) ≤ 0.1" in objective


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--objective.preset", "rloo"], {"algorithm.adv_estimator": "rloo"}),
        (["--objective.preset", "entropy_bonus"], {"actor_rollout_ref.actor.calculate_entropy": True}),
        (["--objective.delta", "0.2"], {"actor_rollout_ref.actor.policy_loss.settings.delta": 0.2}),
        (["--engine.precision", "float32"], {"actor_rollout_ref.rollout.dtype": "float32"}),
        (["--evaluation.greedy", "false"], {"actor_rollout_ref.rollout.val_kwargs.do_sample": True}),
        (["--model.autocast", "false"], {"actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": "fp32"}),
        (["--model.gradient_checkpointing", "false"], {"actor_rollout_ref.model.enable_gradient_checkpointing": False}),
        (["--model.gradient_checkpointing", "true"], {"actor_rollout_ref.model.enable_gradient_checkpointing": True}),
        (["--checkpoint.every", "0", "--steps", "7"], {"trainer.save_freq": 7, "trainer.total_training_steps": 7}),
        (["--verl.trainer.nnodes", "3"], {"trainer.nnodes": 3}),
    ],
)
def test_keys_reach_verl(overrides, expected, folder):
    from omegaconf import OmegaConf

    config = composed(EXAMPLES / "shared.toml", *overrides)
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


def test_reference_penalty_gets_a_reference_policy(folder):
    file = folder / "run.toml"
    text = (EXAMPLES / "shared.toml").read_text()
    file.write_text(text.replace("[objective]", '[objective]\npenalties = [{ kind = "kl", coefficient = 0.01 }]'))
    actor = composed(file).actor_rollout_ref.actor
    assert actor.use_kl_loss and actor.kl_loss_coef == 0


def test_key_that_verl_does_not_have(folder):
    lines = verl.overrides(load_run_file(EXAMPLES / "shared.toml", "verl", ["--verl.trainer.nodes", "3"]), folder)
    with pytest.raises(ConfigError, match=r"verl refuses this configuration: .*nodes"):
        verl.composed_report(lines)


def test_odd_characters_survive_hydra(folder):
    values = ["it's 1=2, {x}: [y]", "a\\b", "a\\", "\\'", "käse", "", "true", "Null", "1e5", "-x"]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for value in values:
        assert parser.parse_override(f"key={hydra_value(value)}").value() == value
    nested = {"a": [1, 2.5, None, False], "b": {"c": "x y"}}
    assert parser.parse_override(f"key={hydra_value(nested)}").value() == nested


def test_tables_are_what_verl_reads(folder):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from holdfast.rollout.models import character_tokenizer

    run = load_run_file(EXAMPLES / "shared.toml", "verl", ["--steps", "3", "--batch.prompts", "4"])
    verl.write_tables(run.config, folder / "out")
    tokenizer = character_tokenizer("0123456789+=")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = OmegaConf.create({"max_prompt_length": 16, "filter_overlong_prompts": True, "return_raw_chat": True})
    train = RLHFDataset([str(folder / "out/data/train.parquet")], tokenizer, config)
    held = RLHFDataset([str(folder / "out/data/held_out.parquet")], tokenizer, config)
    assert len(train) == 12 and len(held) == 128
    row = train[0]
    assert row["raw_prompt"][0]["role"] == "user"
    a, b = row["raw_prompt"][0]["content"].rstrip("=").split("+")
    assert row["reward_model"]["ground_truth"] == str(int(a) + int(b))
    prompts = {train[i]["raw_prompt"][0]["content"] for i in range(len(train))}
    assert not prompts & {held[i]["raw_prompt"][0]["content"] for i in range(len(held))}


@pytest.mark.parametrize("own", [False, True], ids=["task", "own function"])
def test_reward_function_is_the_run_files(own, folder, monkeypatch):
    import pyarrow.parquet as pq
    from verl.trainer.ppo.reward import get_custom_reward_fn

    extra = []
    if own:
        (folder / "graded.py").write_text(
            "def half(problem, response):\n    return 0.5 * (problem.answer in response)\n"
        )
        monkeypatch.syspath_prepend(folder)
        extra = ["--task.reward", "graded:half"]
    run = load_run_file(EXAMPLES / "shared.toml", "verl", extra)
    verl.write_tables(run.config, folder / "out")
    row = pq.read_table(folder / "out/data/train.parquet").slice(0, 1).to_pylist()[0]
    reward = get_custom_reward_fn(composed(EXAMPLES / "shared.toml", *extra))
    monkeypatch.chdir("/")  # a worker's working folder is another one
    given = {"data_source": row["data_source"], "extra_info": row["extra_info"]}
    answer = row["reward_model"]["ground_truth"]
    assert reward(solution_str=f"so #### {answer}", ground_truth=answer, **given) == (0.5 if own else 1.0)
    assert reward(solution_str="so #### 1000", ground_truth=answer, **given) == 0.0

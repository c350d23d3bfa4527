"""What cannot be trained on is refused by name, early; what can go on goes on with a warning."""

import math
import warnings

import pytest
import torch

import holdfast
from holdfast import ConfigError, DataError
from holdfast.integrations.trl import HoldfastGRPOTrainer
from holdfast.integrations.trl.settings import resolve
from holdfast.rollout.store import read_rollouts
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(folder, objective, settings=None, **options):
    options.setdefault("processing_class", runs.TOKENIZER)
    return HoldfastGRPOTrainer(
        runs.model(),
        runs.small_digits,
        runs.config(folder, **settings or {}),
        runs.PROMPTS,
        objective=objective,
        **options,
    )


def played(logprob, env_mask=None, tool_logprob=0.0):
    """A rollout function with a fixed completion and these log-probabilities for it."""

    def rollout(prompts, trainer):
        each = [3 + (i % 4) for i in range(4)]
        prompt_ids = [runs.TOKENIZER(prompt)["input_ids"] for prompt in prompts]
        completions = [[*each[: 2 + number % 3], runs.TOKENIZER.eos_token_id] for number in range(len(prompts))]
        masks = [[1] + [0] + [1] * (len(ids) - 2) for ids in completions]
        logprobs = [
            [tool_logprob if env_mask and not mask else logprob(row, place) for place, mask in enumerate(masks[row])]
            for row in range(len(completions))
        ]
        output = {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": logprobs}
        return output | ({"env_mask": masks} if env_mask else {})

    return rollout


def test_engine_without_logprobs_is_refused_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match=r"'trm'.*transformers' generate records none.*use_vllm=True"):
        trainer(tmp_path, "trm")


@pytest.mark.parametrize(
    ("objective", "part", "cure"),
    [("grpo+kl_cov", "kl_cov", "denominator = 'rollout'"), ("dro", "kl", "kl.policy = 'rollout'")],
)
def test_a_penalty_that_cannot_act_is_warned_of_before_the_first_step(objective, part, cure, tmp_path):
    words = rf"{part} cannot act .no gradient changes.: raise GRPOConfig.steps_per_generation or num_iterations.*{cure}"
    with pytest.warns(UserWarning, match=words):
        trainer(tmp_path, objective)
    several = [{"steps_per_generation": 4}, {"num_iterations": 2}]
    quiet = [(objective, settings) for settings in several] + [("grpo", {}), ("reinforce", {})]
    for name, settings in quiet:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*cannot act")
            trainer(tmp_path, name, settings)


def test_a_weight_that_counts_the_ratio_again_is_warned_of(tmp_path):
    objective = holdfast.preset("opsm", weights=[{"kind": "importance_weight", "numerator": "current"}])
    with pytest.warns(UserWarning, match="both count θ/old"):
        runs.mismatched(runs.Mismatched, tmp_path, settings={"num_iterations": 2}, objective=objective)


def test_the_flagship_acts_with_one_step_per_generation(tmp_path):
    """With θ = old, KL-Cov to the engine changes the gradient; to the old policy it could not."""
    steps = []
    for name in ("trm+sspo", "trm+sspo+kl_cov"):
        seen = runs.Gradients()
        loose = {"trm_max.delta": 9.0, "delta_avg": 9.0} | ({"share": 0.2} if "kl_cov" in name else {})
        objective = holdfast.preset(name, **loose)
        settings = {"max_steps": 1}
        runs.mismatched(
            runs.Mismatched, tmp_path / name, settings=settings, objective=objective, callbacks=[seen]
        ).train()
        steps.append(seen.steps[0])
    assert (steps[0] - steps[1]).norm() > 0


def test_engine_that_turns_out_to_give_none(tmp_path):
    run = runs.mismatched(runs.Mismatched, tmp_path, objective="trm+sspo")
    generate = run._generate_single_turn
    run._generate_single_turn = lambda *args, **kwargs: (generate(*args, **kwargs)[0], None)
    run.use_vllm = False
    with pytest.raises(DataError, match=r"step 1, rank 0: objective 'trm\+sspo' needs .* recorded none"):
        run.train()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_bad_logprob_of_a_sampled_token_names_the_sequence(bad, tmp_path):
    rollout = played(lambda row, place: bad if (row, place) == (5, 1) else -2.0)
    run = trainer(tmp_path, "grpo+tis", rollout_func=rollout)
    with pytest.raises(
        DataError, match=rf"step 1, rank 0: the engine gave {bad} .* token 1 of sequence 5.*1 such token"
    ):
        run.train()


def test_positive_logprob_is_refused(tmp_path):
    run = trainer(tmp_path, "grpo+tis", rollout_func=played(lambda row, place: 0.5))
    with pytest.raises(DataError, match=r"step 1, rank 0: Batch.rollout_logprobs is positive"):
        run.train()


@pytest.mark.parametrize("filler", [math.nan, 0.0, -1e30])
def test_tool_tokens_may_hold_anything(filler, tmp_path):
    seen = runs.Gradients()
    rollout = played(lambda row, place: -2.6, env_mask=True, tool_logprob=filler)
    run = trainer(
        tmp_path,
        holdfast.preset("trm+grpo+kl_cov", **{"trm_max.delta": 1.0, "delta_avg": 0.2}),
        {"max_steps": 1},
        rollout_func=rollout,
        callbacks=[seen],
    )
    run.train()
    assert torch.isfinite(seen.steps[0]).all()
    assert seen.steps[0].norm() > 0
    for record in read_rollouts(runs.recorded(tmp_path) / "step_0001.parquet"):
        assert record.response_mask[:3] == (True, False, True)
        assert not record.trust_mask[1]
        assert record.turn_ids[0] == 0 and record.turn_ids[2] == 1


def test_every_sequence_rejected_is_a_warning_and_the_run_goes_on(tmp_path):
    seen = runs.Gradients()
    objective = holdfast.preset("trm_max", delta=1e-12)
    run = runs.mismatched(runs.Mismatched, tmp_path, objective=objective, callbacks=[seen])
    with pytest.warns(UserWarning, match="step 1: 'trm_max' rejected every sequence"):
        run.train()
    assert run.state.global_step == 4
    assert all(not gradient.any() for gradient in seen.steps)
    assert runs.logged(run, "trust_region/rejected_sequences") == [1.0] * 4


def test_whole_group_masked_as_truncated(tmp_path):
    """TRL empties the mask of truncated completions: no token, no gradient, no record, no division by zero."""
    settings = {"mask_truncated_completions": True, "max_completion_length": 2, "max_steps": 1}
    run = runs.mismatched(runs.Mismatched, tmp_path, settings=settings, objective="trm+sspo+kl_cov")
    run.train()
    assert math.isfinite(runs.logged(run, "loss")[0])
    assert len(list(read_rollouts(runs.recorded(tmp_path) / "step_0001.parquet"))) < 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "grpo"}, "loss_type = 'grpo' .now: objective = 'grpo'"),
        ({"epsilon": 0.1, "scale_rewards": "none"}, "epsilon = 0.1 .*; scale_rewards = 'none'"),
        ({"vllm_importance_sampling_mode": "token_mask"}, "vllm_importance_sampling_mode = 'token_mask'"),
        ({"top_entropy_quantile": 0.2}, "top_entropy_quantile = 0.2"),
        (
            {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
            "steps_per_generation = 2 is not a multiple of gradient_accumulation_steps = 4.*nearest valid value: 4",
        ),
    ],
)
def test_settings_that_the_objective_decides(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, "grpo", settings)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (holdfast.preset("trm_max", detector="kl_exact"), "needs kl_rollout, which TRL does not give"),
        (holdfast.preset("ppo", advantage="gae"), "needs a value head"),
        ("grppo", "unknown preset 'grppo': did you mean"),
    ],
)
def test_objectives_that_trl_cannot_serve(objective, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, objective)


def test_reference_penalty_twice(tmp_path):
    objective = holdfast.preset("grpo", penalties=("kl",))
    with pytest.raises(ConfigError, match=r"beta = 0.1 and the objective's penalty 0.001·k3\(θ‖ref\)"):
        trainer(tmp_path, objective, {"beta": 0.1})


@pytest.mark.parametrize("weighted", [False, True])
def test_trl_settings_become_penalties_and_the_config_stays(weighted, tmp_path):
    args = runs.config(tmp_path, beta=0.1, entropy_coef=0.01, use_bias_correction_kl=weighted)
    objective, changed = resolve("grpo", args)
    kl, bonus = objective.penalties
    assert (kl.coefficient, kl.estimator, kl.policy, kl.ratio_weighted) == (0.1, "k3", "ref", weighted)
    assert bonus.alpha == 0.01
    assert (changed.beta, changed.entropy_coef) == (0.1, 0.0)
    assert (args.beta, args.entropy_coef) == (0.1, 0.01)


def test_truncated_support_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"top_p = 0.9: the engine samples from another distribution"):
        runs.mismatched(runs.Mismatched, tmp_path, settings={"top_p": 0.9}, objective="trm")

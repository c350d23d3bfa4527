"""The loop as a whole: same seed same numbers, resume bit for bit, micro-batches change nothing, everything on disk."""

import json
import math
import shutil

import pytest
import torch

from holdfast.cli import dispatch
from holdfast.errors import ConfigError, DataError
from holdfast.rollout.store import read_rollouts
from holdfast.tasks.verify import InProcess
from holdfast.train.keep.checkpoint import latest_checkpoint, load_state
from holdfast.train.keep.folder import RunFolder
from holdfast.train.policy.forward import micro_batches
from holdfast.train.settings.seeds import derive_seed

SCALARS = (
    *("tokens", "reward_mean", "reward_std", "accuracy", "entropy", "response_length_mean", "truncated_share"),
    *("loss", "grad_norm", "learning_rate", "policy_lag", "kl_exact_mean", "kl_exact_max", "rollout_k1_mean"),
    *("rollout_k2_mean", "rollout_k2_max", "rollout_k3_mean", "rollout_k3_max", "abs_log_ratio_mean"),
    *("abs_log_ratio_max", "masked_sequences", "masked_tokens", "clip_share", "ess", "weight_mean", "weight_max"),
    *("effective_tokens", "coefficient_max"),
)
TIMES = {"seconds", "cpu_seconds", "tokens_per_cpu_second", "time_split"}


def numbers(folder):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in folder.read_metrics()]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(latest_checkpoint(folder.checkpoints) / "model" / "model.safetensors")


def same_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(first, second):
    first, second = weights(first), weights(second)
    return sum(float((first[name] - second[name]).square().sum()) for name in first) ** 0.5


@pytest.mark.slow
def test_same_seed_same_numbers_and_resume_bit_for_bit(small_run):
    whole, _ = small_run("whole")
    again, _ = small_run("again")
    assert numbers(again) == numbers(whole) and same_weights(again, whole)

    asked = iter([False, False, False, True])  # a Ctrl-C in the third step: checked once before every step
    cut, summary = small_run("cut", stop=lambda: next(asked))
    assert (summary["finished"], summary["steps"]) == (False, 3)
    # A kill right after the third step's line: its checkpoint is lost, its line and rollouts are written again.
    shutil.rmtree(latest_checkpoint(cut.checkpoints))
    assert latest_checkpoint(cut.checkpoints).name == "step_0002"
    small_run("cut", resume=True)
    assert numbers(cut) == numbers(whole) and same_weights(cut, whole)
    assert [r.rollout_logprobs for r in read_rollouts(cut.path / "rollouts" / "step_0004.parquet")] == [
        r.rollout_logprobs for r in read_rollouts(whole.path / "rollouts" / "step_0004.parquet")
    ]


@pytest.mark.slow
def test_another_seed_gives_other_numbers(small_run, warm_starts):
    first, _ = small_run("first", "--steps", "1")
    second, _ = small_run("second", "--steps", "1", "--seed", "1")
    assert numbers(first)[1]["entropy"] != numbers(second)[1]["entropy"]


@pytest.mark.parametrize(
    "objective",
    [
        "{preset = 'ppo'}",
        "{preset = 'trm+sspo+kl_cov', delta = 0.3}",
        "{preset = 'gspo+clip_cov', clip_share = 0.05}",
        "{preset = 'trm_max', normalize = {over = 'accepted'}}",
    ],
)
@pytest.mark.parametrize("split", [[], ["--batch.minibatches", "2", "--batch.epochs", "2"]], ids=["one", "several"])
@pytest.mark.slow
def test_micro_batches_change_nothing(small_run, objective, split):
    options = ["--steps", "2", "--objective", objective, *split]
    whole, _ = small_run("whole", *options, "--batch.micro_batch_tokens", "100000")
    cut, _ = small_run("cut", *options, "--batch.micro_batch_tokens", "60")
    for first, second in zip(numbers(whole)[1:], numbers(cut)[1:], strict=True):
        for name in ("loss", "grad_norm", "entropy", "kl_exact_mean", "masked_sequences", "clip_share"):
            assert math.isclose(first[name], second[name], rel_tol=2e-4, abs_tol=1e-6), name
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(cut)[name], atol=2e-5), name


@pytest.mark.slow
def test_groups_without_a_gradient_are_skipped_and_change_nothing(small_run, monkeypatch):
    """A group with equal rewards has zero advantages: no backward pass, and the same weights as with one."""
    from holdfast.train.update import Updater

    reward = lambda self, problem, text: float(problem.prompt < "a5" and len(text) % 2)  # noqa: E731
    monkeypatch.setattr("holdfast.tasks.chains.ChainTask.reward", reward)
    options = ["--batch.prompts", "8", "--objective.preset", "trm_max", "--engine.lag", "0"]
    skipped, _ = small_run("skipped", *options)
    silent = []

    def every_row(self, batch, sequences, rows):
        silent.append(int((~batch.advantages[rows].any(dim=1)).sum()))
        return list(micro_batches(sequences, rows, self.max_tokens)), 0

    monkeypatch.setattr(Updater, "_parts", every_row)
    whole, _ = small_run("whole", *options)
    assert max(silent) > 0 and min(silent) < 32, "some groups, not all, must be silent for this to say anything"
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(skipped)[name], atol=2e-5), name
    for first, second in zip(numbers(whole)[1:], numbers(skipped)[1:], strict=True):
        assert math.isclose(first["grad_norm"], second["grad_norm"], rel_tol=2e-4, abs_tol=1e-7)
        assert math.isclose(first["kl_exact_mean"], second["kl_exact_mean"], rel_tol=2e-4)


def test_everything_a_person_needs_is_in_the_folder(small_run):
    folder, summary = small_run("run")
    assert json.loads(folder.summary.read_text()) == summary
    assert summary["finished"] and summary["steps"] == 4
    assert [record["step"] for record in folder.read_metrics()] == [0, 1, 2, 3, 4]
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step_0002", "step_0004"]
    last = folder.read_metrics()[-1]
    for name in SCALARS:
        assert math.isfinite(last[name]), name
    assert len(last["masked_by_length"]) == 4 and len(last["length_quartiles"]) == 3
    assert last["policy_lag"] == 1 and folder.read_metrics()[1]["policy_lag"] == 0
    assert last["bounds"]["unified"] == min(v for k, v in last["bounds"].items() if not k.startswith("unified"))
    drift = last["drift_by_position"]
    assert len(drift["edges"]) == len(drift["abs_log_mean"]) + 1 == len(drift["kl_exact_max"]) + 1
    assert set(last["time_split"]) == {"generate", "reward", "old_logprobs", "update", "evaluate", "other"}
    assert last["seconds"] == pytest.approx(sum(last["time_split"].values()), rel=1e-6)


def test_rollouts_hold_both_policies_verdict_and_reason(small_run):
    folder, _ = small_run("run", "--objective.delta", "0.001", "--steps", "2")
    records = list(read_rollouts(folder.path / "rollouts" / "step_0002.parquet"))
    metrics = folder.read_metrics()[2]
    assert len(records) == 16 and sum(len(r.response_ids) for r in records) == metrics["tokens"]
    rejected = [record for record in records if not any(record.trust_mask)]
    assert len(rejected) / 16 == metrics["masked_sequences"] > 0
    assert all((record.mask_reason or "").startswith("trm_max") == (record in rejected) for record in records)
    ratios = [
        trainer - rollout
        for record in records
        for trainer, rollout in zip(record.trainer_logprobs, record.rollout_logprobs, strict=True)
    ]
    assert sum(map(abs, ratios)) / len(ratios) == pytest.approx(metrics["abs_log_ratio_mean"], rel=1e-4)
    # k1 = -log rho, k2 = (log rho)^2 / 2, k3 = rho - 1 - log rho, rho = trainer / rollout: means over all tokens.
    assert -sum(ratios) / len(ratios) == pytest.approx(metrics["rollout_k1_mean"], rel=1e-3, abs=1e-7)
    k2 = [ratio**2 / 2 for ratio in ratios]
    assert sum(k2) / len(k2) == pytest.approx(metrics["rollout_k2_mean"], rel=1e-3)
    assert max(k2) == pytest.approx(metrics["rollout_k2_max"], rel=1e-3)
    k3 = [math.expm1(ratio) - ratio for ratio in ratios]
    assert sum(k3) / len(k3) == pytest.approx(metrics["rollout_k3_mean"], rel=1e-2)
    assert max(k for r in records for k in r.kl_exact) == pytest.approx(metrics["kl_exact_max"], rel=1e-4)
    drift = metrics["drift_by_position"]
    for start, end, mean in zip(drift["edges"], drift["edges"][1:], drift["abs_log_mean"], strict=False):
        span = [
            abs(a - b)
            for r in records
            for a, b in list(zip(r.trainer_logprobs, r.rollout_logprobs, strict=True))[int(start) : int(end)]
        ]
        assert sum(span) / len(span) == pytest.approx(mean, rel=1e-3)
    right = [record.reward == 1.0 for record in records]
    assert sum(right) / 16 == metrics["accuracy"]
    # delta = .001 on k2 = (log ratio)^2 / 2: rejected exactly where some |log ratio| exceeds sqrt(.002).
    for record in records:
        largest = max(abs(a - b) for a, b in zip(record.trainer_logprobs, record.rollout_logprobs, strict=True))
        assert (record in rejected) == (largest**2 / 2 > 0.001)
    assert {record.step for record in records} == {2} and {record.environment for record in records} == {"ledger"}
    assert all(len(record.token_texts) == len(record.response_ids) for record in records)


@pytest.mark.slow
def test_trainer_and_float32_engine_agree_when_nothing_differs(small_run):
    """An engine without lag and quantisation is the trainer: truncated sampling included, drift is rounding."""
    for name, sampling in (
        ("plain", []),
        ("warm", ["--sampling.temperature", "0.7"]),
        ("truncated", ["--sampling.top_p", "0.9", "--sampling.temperature", "1.3"]),
        ("top_k", ["--sampling.top_k", "3", "--engine.exact_kl", "false"]),
    ):
        folder, _ = small_run(name, "--engine.precision", "float32", "--engine.lag", "0", "--steps", "1", *sampling)
        record = folder.read_metrics()[1]
        assert record["abs_log_ratio_max"] < 1e-3, name
        if name == "top_k":
            assert "kl_exact_max" not in record, "the sampling mask is enough to renormalise on, and no distribution"
        else:
            assert record["kl_exact_max"] < 1e-5, name


def test_raw_trainer_logprobs_are_a_mismatch_that_shows(small_run):
    folder, _ = small_run(
        "raw", "--engine.precision", "float32", "--engine.lag", "0", "--steps", "1",
        "--sampling.temperature", "0.7", "--sampling.trainer_support", "raw",
    )  # fmt: skip
    assert folder.read_metrics()[1]["abs_log_ratio_mean"] > 1e-3


def test_learning_rate_warms_up_linearly(small_run):
    folder, _ = small_run("run", "--optimizer.warmup_steps", "3", "--optimizer.learning_rate", "0.004")
    rates = [record["learning_rate"] for record in folder.read_metrics()[1:]]
    assert rates == pytest.approx([0.001, 0.002, 0.003, 0.004])


def test_evaluation_samples_and_decodes_held_out_problems_with_the_newest_weights(small_config, tmp_path, warm_starts):
    from holdfast.train.evaluate import evaluate
    from holdfast.train.setup import set_up

    run = set_up(
        small_config("--engine.lag", "3", "--engine.top_logprobs", "3"), RunFolder(tmp_path),
        resume=False, warm_starts=warm_starts, progress=lambda *progress: None,
    )  # fmt: skip
    asked, reports, splits = [], [], []
    generate, draw = run.judge.generate, run.source.draw
    run.judge.generate = lambda prompts, sampling, **options: (
        asked.append((len(prompts), sampling.temperature, run.judge.policy_version))
        or reports.append((options["return_distributions"], options["return_top"]))
        or generate(prompts, sampling, **options)
    )
    run.source.draw = lambda seed, count, split: splits.append(split) or draw(seed, count, split)
    run.step = 5
    record = evaluate(run)
    assert asked == [(16, 1.0, 5), (16, 0.0, 5)] and splits == ["eval", "eval"]
    assert reports == [(False, 0)] * 2, "nothing is measured of evaluations"
    assert set(record) == {
        "eval_reward", "eval_rewards", "eval_reward_se", "eval_greedy_reward", "eval_accuracy", "eval_greedy_accuracy",
    }  # fmt: skip
    assert record["eval_accuracy"] == record["eval_reward"] == sum(record["eval_rewards"]) / 16


def test_rewards_that_are_not_0_or_1_have_no_accuracy(small_config, tmp_path, warm_starts):
    from holdfast.train.evaluate import evaluate
    from holdfast.train.setup import set_up

    run = set_up(
        small_config("--evaluation.problems", "4"), RunFolder(tmp_path),
        resume=False, warm_starts=warm_starts, progress=lambda *progress: None,
    )  # fmt: skip
    given = iter([0.0, 1.0, 2.5, 0.5, *[1.0] * 4, *[0.0, 1.0] * 4])
    run.scorer = InProcess(lambda problem, text: next(given))
    record = evaluate(run)
    assert record["eval_rewards"] == [0.0, 1.0, 2.5, 0.5] and record["eval_reward"] == 1.0
    # squares of the differences from the mean: 1 + 0 + 2.25 + .25 = 3.5; sqrt(3.5 / 3 / 4)
    assert record["eval_reward_se"] == pytest.approx((3.5 / 12) ** 0.5)
    assert record["eval_greedy_reward"] == 1.0 and not {"eval_accuracy", "eval_greedy_accuracy"} & set(record)
    assert evaluate(run)["eval_accuracy"] == 0.5
    run.scorer = InProcess(lambda problem, text: 1 / 0)
    failed = evaluate(run)
    assert failed["eval_reward_errors"] == 8 and failed["eval_reward"] == 0.0


def test_a_run_with_graded_rewards_is_told_by_reward(small_run, monkeypatch):
    graded = lambda self, problem, text: text.count("0") / 4 - 1  # noqa: E731
    monkeypatch.setattr("holdfast.tasks.chains.ChainTask.reward", graded)
    folder, summary = small_run("run", "--steps", "2")
    record = folder.read_metrics()[1]
    assert "accuracy" not in record and record["reward_mean"] < 0
    low, *_, high = record["reward_quartiles"]
    assert low <= record["reward_mean"] <= high and record["reward_quartiles"] == sorted(record["reward_quartiles"])
    assert summary["start_reward"] == folder.read_metrics()[0]["eval_reward"]
    assert {"final_reward", "final_greedy_reward"} <= set(summary) and "start_accuracy" not in summary


def test_engine_without_distributions_measures_no_exact_kl(small_run):
    folder, _ = small_run("sampled", "--engine.exact_kl", "false", "--steps", "1")
    record = folder.read_metrics()[1]
    assert "kl_exact_mean" not in record and "bounds" not in record and "rollout_k3_mean" in record


TOP = ["--engine.exact_kl", "false", "--engine.top_logprobs", "4", "--objective.detector", "kl_lower"]


def test_likeliest_tokens_alone_bound_what_whole_distributions_measure(small_run):
    """The same engine and seed: the same rollouts. δ is tight enough that the mask rejects by the bound."""
    steps = ["--steps", "1", "--objective.delta", "1e-4"]
    exact, _ = small_run("exact", "--objective.detector", "kl_exact", *steps)
    top, _ = small_run("top", *TOP, *steps)
    whole, bounds = exact.read_metrics()[1], top.read_metrics()[1]
    assert whole["abs_log_ratio_mean"] == bounds["abs_log_ratio_mean"] and "kl_exact_mean" not in bounds
    for end in ("mean", "max"):
        assert 0 < bounds[f"kl_lower_{end}"] <= whole[f"kl_exact_{end}"] + 1e-7
        assert bounds[f"tv_lower_{end}"] <= bounds[f"tv_upper_{end}"] <= 1
    assert 0 < bounds["masked_sequences"] <= whole["masked_sequences"] < 1
    kept = {bool(all(r.trust_mask)) for r in read_rollouts(top.path / "rollouts" / "step_0001.parquet")}
    assert kept == {True, False}
    assert bounds["bounds"]["unified"] > 0, "an upper bound of TV may feed a bound on the error"


@pytest.mark.slow
def test_bounds_reach_the_records_and_the_audit(small_run):
    """The same rollouts with whole distributions: what is proven of each token holds for its exact KL."""
    steps = ["--steps", "2", "--objective", "{preset = 'ppo'}"]
    top, _ = small_run("top", *TOP[:4], *steps)
    both, _ = small_run("both", "--engine.top_logprobs", "4", *steps)
    records, exact = (list(read_rollouts(f.path / "rollouts" / "step_0002.parquet")) for f in (top, both))
    assert [r.response_ids for r in records] == [r.response_ids for r in exact]
    tokens = [bounds for r in records for bounds in zip(r.kl_lower, r.tv_lower, r.tv_upper, strict=True)]
    known = [kl for r in exact for kl in r.kl_exact]
    assert all(low <= kl + 1e-6 for (low, _, _), kl in zip(tokens, known, strict=True)) and max(known) > 1e-4
    assert all(tv_low <= (kl / 2) ** 0.5 + 1e-4 for (_, tv_low, _), kl in zip(tokens, known, strict=True)), "Pinsker"
    metrics = top.read_metrics()[2]
    for name, values in zip(("kl_lower", "tv_lower", "tv_upper"), zip(*tokens, strict=True), strict=True):
        assert sum(values) / len(values) == pytest.approx(metrics[f"{name}_mean"], rel=1e-4), name
        assert max(values) == pytest.approx(metrics[f"{name}_max"], rel=1e-6), name
    assert all(r.kl_exact is None for r in records)

    assert dispatch(["audit", str(top.path / "rollouts"), "--out", str(top.path / "audit"), "--fail-on", "never"]) == 0
    found = json.loads((top.path / "audit" / "report.json").read_text())
    shown = found["statistics"]["estimators"]
    logged = [r for step in (1, 2) for r in read_rollouts(top.path / "rollouts" / f"step_000{step}.parquet")]
    for name in ("kl_lower", "tv_lower", "tv_upper"):
        values = [value for r in logged for value in getattr(r, name)]
        assert shown[name]["value"] == pytest.approx(sum(values) / len(values), rel=1e-5), name
    inside = sum(max(r.tv_upper) <= 0.025**0.5 for r in logged) / len(logged)
    assert found["statistics"]["regions"][1]["inside"]["value"] == pytest.approx(inside)
    assert "path" in found["advice"]["bounds"] and found["advice"]["certificate"]["bounds"]["path"]["upper"] > 0


@pytest.mark.slow
def test_a_run_with_likeliest_tokens_alone_is_resumed_bit_for_bit(small_run):
    whole, _ = small_run("whole", *TOP)
    asked = iter([False, False, True])
    small_run("cut", *TOP, stop=lambda: next(asked))
    cut, _ = small_run("cut", *TOP, resume=True)
    assert same_weights(cut, whole) and cut.read_metrics()[-1]["kl_lower_max"] > 0


def test_a_truncated_support_within_the_reported_tokens_is_the_trainer_s_too(small_run):
    folder, _ = small_run(
        "top_k", "--engine.precision", "float32", "--engine.lag", "0", "--steps", "1", "--sampling.top_k", "3",
        "--engine.exact_kl", "false", "--engine.top_logprobs", "4",
    )  # fmt: skip
    record = folder.read_metrics()[1]
    assert record["abs_log_ratio_max"] < 1e-3 and record["kl_exact_max"] < 1e-5 and record["tv_upper_max"] < 1e-2


def test_a_truncated_support_is_renormalised_on_the_engine_s_own_sets(small_run):
    """Without whole distributions, in pieces of different widths; how many tokens could be drawn is on record."""
    folder, _ = small_run(
        "top_p", "--engine.precision", "float32", "--engine.lag", "0", "--steps", "1", "--sampling.top_p", "0.6",
        "--engine.exact_kl", "false",
    )  # fmt: skip
    record = folder.read_metrics()[1]
    assert record["abs_log_ratio_max"] < 1e-3 and "kl_exact_max" not in record
    (file,) = (folder.path / "rollouts").glob("*.parquet")
    found = [size for rollout in read_rollouts(file) for size in rollout.support_size]
    assert min(found) == 1 and max(found) > 1, "of one certain token, and of several"


def test_a_mask_on_bounds_that_nobody_asked_the_engine_for_is_refused(small_run):
    with pytest.raises(ConfigError, match=r"needs kl_rollout_lower.* engine.top_logprobs = 0; set it .* 20"):
        small_run("run", "--objective.detector", "kl_lower")


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ("trm_token", ("--objective.delta", "0.02")),
        ("trm_prefix", ("--objective.detector", "tv_upper", "--engine.top_logprobs", "8", "--objective.delta", "0.3")),
    ],
)
def test_part_of_a_response_is_trained_on(small_run, row, more):
    """By the row's name alone, on exact KL; and with bounds of the engine's likeliest tokens."""
    options = ("--objective.preset", f"{row}+ppo", *more)
    folder, _ = small_run(row, *options, "--steps", "3")
    kept = [r.trust_mask for f in sorted((folder.path / "rollouts").glob("*.parquet")) for r in read_rollouts(f)]
    partly = [mask for mask in kept if any(mask) and not all(mask)]
    assert partly
    if row == "trm_prefix":
        assert all(mask[: sum(mask)] == (True,) * sum(mask) for mask in kept)


@pytest.mark.slow
def test_a_reference_penalty_measures_from_the_warm_start(small_run):
    kl = "[{kind = 'kl', coefficient = 0.0, policy = 'ref'}]"
    with_penalty, _ = small_run("kl", "--steps", "2", "--objective", "{preset = 'ppo', penalties = " + kl + "}")
    without, _ = small_run("plain", "--steps", "2", "--objective", "{preset = 'ppo'}")
    strong = kl.replace("0.0", "5.0")
    changed, _ = small_run("strong", "--steps", "2", "--objective", "{preset = 'ppo', penalties = " + strong + "}")
    # Sequences without advantage take part in the backward pass of a penalty, which changes the order of sums.
    assert distance(with_penalty, without) < 0.1 * distance(changed, without)


def test_all_rewards_equal_is_said_and_changes_nothing(small_run, monkeypatch):
    monkeypatch.setattr("holdfast.tasks.chains.ChainTask.reward", lambda self, problem, text: 0.0)
    folder, _ = small_run("run", "--steps", "1")
    record = folder.read_metrics()[1]
    assert any("all rewards equal 0" in warning for warning in record["warnings"])
    assert record["loss"] == 0.0 and record["grad_norm"] == 0.0


@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_a_gradient_is_cut_to_the_largest_norm_and_logged_as_it_was(small_run, monkeypatch, most):
    taken, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        taken.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    folder, _ = small_run("run", "--steps", "1", "--optimizer.max_grad_norm", str(most))
    (norm,) = [record["grad_norm"] for record in folder.read_metrics()[1:]]
    assert 1e-3 < norm < 1e3 and taken[-1] == pytest.approx(min(norm, most), rel=1e-3)


def test_every_sequence_masked_is_said_with_the_threshold_that_would_keep_some(small_run):
    folder, _ = small_run("run", "--steps", "1", "--objective.delta", "1e-9")
    record = folder.read_metrics()[1]
    (warning,) = [w for w in record["warnings"] if "every sequence masked" in w]
    assert record["grad_norm"] == 0.0 and record["masked_sequences"] == 1.0
    delta = float(warning.split("raise delta to ")[1].split()[0])
    kept, _ = small_run("kept", "--steps", "1", "--objective.delta", str(delta * 1.05))
    # 70 % of 16 sequences is 11.2; the advice is written with two digits.
    assert 10 / 16 <= 1 - kept.read_metrics()[1]["masked_sequences"] <= 13 / 16


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda self, problem, text: 1 / 0, r"reward function raised ZeroDivisionError.*prompt 'a"),
        (lambda self, problem, text: float("nan"), r"reward function returned nan for prompt 'a"),
        (lambda self, problem, text: "right", r"reward function raised ValueError"),
    ],
)
def test_a_broken_reward_function_is_named(small_run, monkeypatch, reward, words):
    monkeypatch.setattr("holdfast.tasks.chains.ChainTask.reward", reward)
    with pytest.raises(DataError, match=words):
        small_run("run", "--steps", "1")


@pytest.mark.slow
def test_an_adaptive_bonus_adapts_and_survives_a_restart(small_run):
    """The coefficient rises by .01 a step below a target that is never reached, and the restarted run has it too."""
    adaptive = (
        "--objective.preset",
        "trm_max+ppo+adaptive_entropy",
        "--objective.target",
        "9.0",
        "--objective.adapt",
        "0.01",
    )
    whole, _ = small_run("whole", *adaptive)
    asked = iter([False, False, False, True])
    cut, _ = small_run("cut", *adaptive, stop=lambda: next(asked))
    saved = load_state(latest_checkpoint(cut.checkpoints))["objective"]["penalties"][0]
    assert saved["alpha"] == pytest.approx(0.03)
    small_run("cut", *adaptive, resume=True)
    assert numbers(cut) == numbers(whole) and same_weights(cut, whole)
    plain, _ = small_run("plain", *adaptive[:4])
    assert not same_weights(plain, whole)


@pytest.mark.slow
def test_held_out_problems_that_repeat_or_are_trained_on_are_said_at_the_start(small_run, tmp_path):
    rows = [{"prompt": f"a{i}=?", "answer": f"0{i % 10}"} for i in range(12)]
    for name, part in (("a", rows), ("b", rows[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    table = f"{{name = 'jsonl', path = '{tmp_path}/a.jsonl', eval_path = '{tmp_path}/b.jsonl'}}"
    options = ["--task", table, "--steps", "1", "--warm_start.clean_steps", "0", "--warm_start.sloppy_steps", "0"]
    folder, _ = small_run("run", *options)
    repeated, trained = folder.read_metrics()[0]["warnings"]
    assert "the 16 held-out problems are only 3 different ones" in repeated
    assert "16 of the 16 held-out problems are training problems" in trained
    plain, _ = small_run("plain", "--steps", "1", "--task.entries", "3")
    assert "warnings" not in plain.read_metrics()[0]


def test_generated_problems_are_drawn_as_the_steps_draw_them(small_config, tmp_path, warm_starts, monkeypatch):
    from holdfast.train.evaluate import held_out_doubts
    from holdfast.train.setup import set_up

    run = set_up(
        small_config("--task.entries", "3"), RunFolder(tmp_path),
        resume=False, warm_starts=warm_starts, progress=lambda *progress: None,
    )  # fmt: skip
    assert held_out_doubts(run) == []
    held_out = run.source.draw(derive_seed(0, "evaluate"), 16, "eval").problems
    asked, draw = [], type(run.source.task).problems

    def leaky(self, seed, count, split):
        asked.append((seed, count, split))
        return [*draw(self, seed, count - 1, split), held_out[2]]

    monkeypatch.setattr(type(run.source.task), "problems", leaky)
    assert any("held-out problems are training problems" in text for text in held_out_doubts(run))
    drawn = [seed for seed, _, split in asked if split == "train"]
    assert drawn == [derive_seed(0, "train", step) for step in (1, 2, 3, 4)]

"""The object: configuration round trips, overrides, refusals, plans, metrics, compilation."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import gradients, random_batch, with_gradient
from holdfast import Batch, ConfigError, DataError, Objective, TokenStats, list_presets, merge_metrics, preset
from holdfast.objectives.metrics import LengthQuartiles
from holdfast.objectives.parts.gates import Box, Clip, One
from holdfast.objectives.parts.masks import TrmAvg, TrmMax
from holdfast.objectives.parts.reduce import Normalize, Pool
from holdfast.objectives.parts.weights import ImportanceWeight
from holdfast.objectives.presets import TABLE

COMBINED = "trm+sspo+kl_cov"


@pytest.mark.parametrize("name", [*list_presets(), COMBINED])
def test_round_trip_through_dict_json_and_toml(name):
    objective = preset(name)
    settings = objective.to_dict()
    assert Objective.from_dict(settings) == objective
    assert Objective.from_dict(json.loads(json.dumps(settings))) == objective
    assert Objective.from_dict(tomllib.loads(tomli_w.dumps(settings))) == objective


@pytest.mark.parametrize("name", [*list_presets(), COMBINED])
def test_explain_says_the_formula_with_its_numbers(name):
    text = preset(name).explain()
    assert text.startswith(f"{name}:  L = −Σ_it n·") and "None" not in text and "{" not in text
    assert all(part.formula() in text for part in preset(name).parts)


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_every_row_says_where_it_is_from_and_how_it_differs(row):
    assert all((row.title, row.paper, row.equation, row.defaults, row.differs))


def test_rows_join_and_what_a_row_uses_alone_gives_way():
    joined = preset("trm+sspo+kl_cov", delta=0.3)
    assert [part.kind() for part in joined.parts] == ["trm_max", "trm_avg", "kl_cov"]
    assert joined.gate == preset("sspo").gate and joined.pool == preset("sspo").pool
    assert joined.denominator == "rollout" and joined.masks[0] == TrmMax(0.3)
    assert preset("clip_cov").gate == Clip(0.2, 0.2)
    both = preset("trm_max+clip_cov+kl_cov+entropy_bonus")
    assert [part.kind() for part in both.parts] == ["trm_max", "clip_cov", "kl_cov", "entropy_bonus"]
    assert preset("clip_cov+dapo").gate == Clip(0.2, 0.28)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: preset("grppo"), "unknown preset 'grppo': did you mean grpo, ppo"),
        (lambda: preset("ppo+sspo"), "presets 'ppo' and 'sspo' both set gate"),
        (lambda: preset("trm+tis"), "'trm' and 'tis' both set denominator"),
        (lambda: preset("ppo+ppo"), "names a row twice"),
        (
            lambda: preset("sspo+two_sided"),
            r"'two_sided' sets gate.dual, which the gate 'log_arctan' of 'sspo' does not",
        ),
        (lambda: preset("ppo+two_sided"), r"'two_sided' sets gate.dual = 4.0, and the gate 'clip' of 'ppo' has 3.0"),
        (
            lambda: preset("tis", denominator="rollout"),
            r"'tis' corrects .* twice: its ratio θ/rollout already holds the weight old/rollout .*keep denominator",
        ),
        (lambda: preset("tis+icepop"), "'tis\\+icepop' corrects .* twice: its weights old/rollout limited .* multiply"),
        (lambda: preset("decoupled_ppo+tis"), "'decoupled_ppo\\+tis' corrects the engine's drift twice"),
        (
            lambda: preset("trm", weights=[ImportanceWeight(numerator="current")]),
            r"'trm' corrects .* twice: its ratio θ/rollout already holds the weight θ/rollout .*; leave the weight out",
        ),
        (lambda: preset("trm", detla=0.1), "'trm' has no setting 'detla': did you mean delta"),
        (lambda: preset("clip_cov+kl_cov", anneal={"shape": "linear"}), "name one of clip_cov.anneal, kl_cov.anneal"),
        (lambda: preset("ppo", gate="clop"), "unknown gate 'clop': did you mean clip"),
        (lambda: preset("trm", delta="big"), "TrmMax.delta = 'big': expected float"),
        (lambda: preset("trm", delta=True), "TrmMax.delta = True: expected float"),
        (
            lambda: preset("trm_max", detector="k9"),
            "TrmMax.detector = 'k9': allowed: abs_log, .* k2, k3",
        ),
        (lambda: preset("ppo", masks="trm_max"), "expected a list"),
        (lambda: Objective(gate=One()), "gate 'one' has no useful gradient of its own: use carrier='score'"),
        (lambda: Objective.from_dict({"gait": "clip"}), "unknown key 'gait' for an objective: did you mean gate"),
        (lambda: Objective.from_dict({"gate": {"kind": "clip", "hi": 1.0}}), "unknown key 'hi' for Clip"),
        (lambda: Objective.from_dict({"carrier": "score "}), "carrier = 'score ': did you mean score"),
        (lambda: Normalize("fixed_length"), "Normalize.length = None: must be a positive number of tokens"),
        (lambda: Normalize("token_mean", 5), "Normalize.length = 5: must be left out"),
        (lambda: Pool("token", gradient="token"), "Pool.gradient = 'token'"),
    ],
)
def test_impossible_settings_are_refused_with_the_fix(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_a_weight_beside_a_gate_that_ignores_the_ratio_is_one_correction():
    """REINFORCE weighted by θ/rollout, in the trust region: the gradient of trm with its ratio truncated."""
    batch, stats = random_batch()
    weighted = Objective(
        gate=One(), carrier="score", denominator="rollout", masks=(TrmMax(0.3),),
        weights=(ImportanceWeight(high=1.2, numerator="current"),),
    )  # fmt: skip
    capped = preset("trm_max", delta=0.3, gate=Box(None, 1.2), carrier="score")
    torch.testing.assert_close(gradients(weighted, batch, stats)[1], gradients(capped, batch, stats)[1])
    assert weighted.double_corrections == []
    assert preset("tis", denominator="rollout", weights=[]).weights == ()


def test_explain_says_what_cannot_act_and_what_counts_twice():
    assert "Note" not in preset("trm+sspo+kl_cov").explain()
    text = preset("grpo+kl_cov").explain()
    assert "θ is old, and clip and kl_cov cannot act (no gradient changes): take several steps" in text
    assert "for clip and kl_cov set denominator = 'rollout'" in text
    # Beside a weight old/rollout the ratio cannot be to the rollout policy as well.
    text = preset("tis+kl_cov").explain()
    assert "take several steps, or for kl_cov set kl_cov.policy = 'rollout'" in text and "denominator" not in text
    twice = Objective(masks=(TrmMax(),), weights=(ImportanceWeight(numerator="current"),)).explain()
    assert "the weight θ/rollout limited to [0, 2] and the ratio θ/old both count θ/old" in twice


def test_overrides_reach_fields_parts_and_named_parts():
    objective = preset("clip_cov+kl_cov", **{"kl_cov.anneal": {"shape": "linear", "steps": 50}})
    assert objective.penalties[0].anneal.steps == 50.0 and objective.masks[0].anneal.shape == "constant"
    assert preset("ppo", normalize={"reduction": "fixed_length", "length": 9}).normalize.length == 9
    assert preset("ppo").with_(gate=Clip(0.1, 0.1)).gate.high == 0.1
    assert preset("ppo", masks=["trm_max", {"kind": "ser", "max_deviation": 0.1}]).masks[1].max_deviation == 0.1


def test_rejected_sequences_count_in_the_denominator_unless_asked_otherwise():
    batch, stats = random_batch(8, 10)
    objective = Objective(masks=(TrmMax(0.25),), normalize=Normalize("token_mean"))
    out = objective(batch, stats)
    kept, total = out.trust_mask.sum(), batch.response_mask.sum()
    assert 0 < kept < total
    other = objective.with_(**{"normalize.over": "accepted"})(batch, stats)
    torch.testing.assert_close(other.loss, out.loss * total / kept)


def test_masking_everything_gives_a_zero_gradient_and_says_so():
    batch, stats = random_batch()
    for over in ("all", "accepted"):
        objective = Objective(masks=(TrmMax(1e-12),), normalize=Normalize(over=over))
        loss, gradient, _ = gradients(objective, batch, stats)
        assert loss == 0 and not gradient.any()
        assert objective(batch, stats).metrics["masked_sequences"] == 1


def test_no_old_policy_means_the_current_one():
    batch, stats = random_batch()
    given = replace(batch, old_logprobs=stats.logprobs)
    torch.testing.assert_close(
        gradients(preset("grpo"), replace(batch, old_logprobs=None), stats)[1],
        gradients(preset("grpo"), given, stats)[1],
    )


def test_a_score_carrier_does_not_silence_penalties_on_the_same_ratio():
    batch, stats = random_batch()
    base = gradients(preset("cispo"), batch, stats)[1]
    with_penalty = preset("cispo").with_(penalties=[{"kind": "kl", "policy": "old", "estimator": "k2"}])
    assert not torch.allclose(gradients(with_penalty, batch, stats)[1], base)


def test_prepare_without_stats_takes_the_old_policy():
    batch, _ = random_batch()
    objective = preset("kl_cov", share=0.2)
    assert batch.old_logprobs is not None
    expected = objective.prepare(batch, TokenStats(logprobs=batch.old_logprobs)).prepared[0]
    got = objective.prepare(batch).prepared[0]
    assert expected is not None and got is not None and torch.equal(expected, got)
    with pytest.raises(DataError, match=r"pass Batch\.old_logprobs"):
        objective.prepare(replace(batch, old_logprobs=None))
    with pytest.raises(DataError, match="cannot know entropy"):
        preset("entropy_bonus").prepare(batch)


def test_metrics_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    batch = Batch(
        advantages=torch.tensor([1.0, -1.0]),
        response_mask=mask,
        old_logprobs=torch.tensor([[-1.0, -1.0, 9.0], [-1.0, 9.0, 9.0]]),
        rollout_logprobs=torch.tensor([[-1.0, -1.0, 9.0], [-3.0, 9.0, 9.0]]),
    )
    stats = TokenStats(logprobs=torch.tensor([[-1.0, -0.5, 9.0], [-1.0, 9.0, 9.0]]))
    metrics = Objective(gate=Clip(0.2, 0.2), masks=(TrmMax(1.0),))(batch, stats).metrics
    values = {name: round(value.item(), 5) for name, value in metrics.items()}
    # sequence 2 has log ρ = 2, k2 = 2 > 1: rejected; token 2 of sequence 1 has r = e^.5 > 1.2: clipped.
    assert values["masked_tokens"] == round(1 / 3, 5) and values["masked_sequences"] == 0.5
    assert values["clip_share"] == round(1 / 3, 5)
    # coefficients: 1, 0 (clipped), 0 (rejected): (Σc)²/(K Σc²) = 1/3
    assert values["effective_tokens"] == round(1 / 3, 5) and values["coefficient_max"] == 1.0
    assert values["rollout_k1_max"] == 0.0 and values["old_k1_max"] == 0.0
    assert values["old_k2_mean"] == round(0.5**2 / 2 / 3, 5)
    assert values["rollout_k1_mean"] == round(-(0.5 + 2) / 3, 5) and values["rollout_k2_max"] == 2.0
    assert values["rollout_k3_max"] == round(7.389056 - 1 - 2, 5)
    assert values["old_abs_log_mean"] == round(0.5 / 3, 5) and values["rollout_abs_log_max"] == 2.0
    assert values["weight_mean"] == 1.0 and values["ess"] == 1.0


def test_covariance_share():
    """12 tokens: ⌈2e-4 · 12⌉ = 1, so the largest |Cov| over the sum of all."""
    batch, stats = random_batch(4, 6)
    mask = batch.response_mask
    logprobs, advantages = stats.logprobs, batch.advantages[:, None].expand(4, 6)
    size = ((logprobs - logprobs[mask].mean()) * (advantages - advantages[mask].mean())).abs()[mask]
    metrics = preset("ppo")(batch, stats).metrics
    torch.testing.assert_close(metrics["covariance_share"], size.max() / size.sum())


class Reading(TorchDispatchMode):
    """Refuses every operation that would make a GPU wait for the CPU to read a value."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique")), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*list_presets(), COMBINED])
def test_nothing_is_read_back_from_the_device(name):
    """Neither in the loss nor, without validation, in the plan; checked on the operations, for want of a GPU."""
    batch, stats = random_batch(4, 6)
    objective, leaves = preset(name), with_gradient(stats)
    with Reading():
        plan = objective.prepare(batch, stats, validate=False)
        objective(batch, leaves, plan=plan.select(slice(0, 4))).loss.backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Reading():
        float(plan.counts.tokens)


def test_an_empty_row_is_padding_not_a_rejected_sequence():
    batch, stats = random_batch(4, 6)
    mask = batch.response_mask.clone()
    mask[1] = False
    metrics = preset("ppo")(replace(batch, response_mask=mask), stats).metrics
    assert metrics["masked_sequences"] == 0 and metrics["masked_tokens"] == 0


def test_length_quartiles():
    mask = torch.arange(8)[None] < torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 0])[:, None]
    quartiles = LengthQuartiles.of(mask)
    assert quartiles.edges.tolist() == [2, 4, 6] and quartiles.sizes.tolist() == [2, 2, 2, 2]
    long = mask.sum(dim=-1) >= 6
    assert quartiles.shares(mask, long).tolist() == [0, 0, 0.5, 1.0]


def test_merging_no_metrics_gives_none():
    assert merge_metrics([]) == {}


@pytest.mark.parametrize(
    ("owner", "name", "value", "words"),
    [
        (
            "batch",
            "rollout_logprobs",
            float("nan"),
            "Batch.rollout_logprobs is not finite at 1 response token",
        ),
        ("batch", "old_logprobs", 0.5, r"Batch.old_logprobs is positive at 1 response token, .* \(value 0.5\)"),
        ("stats", "logprobs", float("-inf"), "TokenStats.logprobs is not finite"),
        ("stats", "entropy", float("nan"), "TokenStats.entropy is not finite"),
        ("stats", "tv_rollout_upper", float("nan"), "TokenStats.tv_rollout_upper is not finite"),
    ],
)
def test_bad_values_are_named_with_count_and_place(owner, name, value, words):
    batch, stats = random_batch()
    record = batch if owner == "batch" else stats
    tensor = getattr(record, name).clone()
    row, column = batch.response_mask.nonzero()[5].tolist()
    tensor[row, column] = value
    changed = replace(record, **{name: tensor})
    with pytest.raises(DataError, match=words) as error:
        preset("trm")(*((changed, stats) if owner == "batch" else (batch, changed)))
    assert f"first at sequence {row}, token {column}" in str(error.value)


def test_bad_values_at_masked_tokens_are_legal():
    """Tool tokens have no log-probability: NaN there is data, not an error."""
    batch, stats = random_batch()
    assert batch.rollout_logprobs is not None
    hole = ~batch.response_mask
    assert hole.any()
    broken = replace(batch, rollout_logprobs=batch.rollout_logprobs.masked_fill(hole, float("nan")))
    torch.testing.assert_close(gradients(preset("trm"), broken, stats), gradients(preset("trm"), batch, stats))


UNCHECKED = """
import sys, torch
from holdfast import Batch, Objective, TokenStats, preset
from holdfast.objectives.parts.gates import Clip
good = {"advantages": torch.zeros(2), "response_mask": torch.ones(2, 3, dtype=torch.bool)}
make = lambda **change: Batch(**(good | change))
zeros = torch.zeros
for line in sys.stdin.read().splitlines():
    try:
        print("no error:", eval(line))
    except ValueError as error:
        print(error)
"""

WRONG = {
    "make(old_logprobs=zeros(2, 4))": r"Batch.old_logprobs has shape \(2, 4\); .* must be \(2, 3\)",
    "make(advantages=zeros(3))": r"Batch.advantages has shape \(3,\); .* must be \(2,\) or \(2, 3\)",
    "make(advantages=zeros(2, 3, 1))": r"Batch.advantages has shape \(2, 3, 1\)",
    "make(response_mask=torch.ones(2))": r"Batch.response_mask must be \[B, T\], got shape \(2,\)",
    "make(response_mask=torch.full((2, 3), 0.5))": "must be boolean or hold only 0 and 1",
    "make(sequence_ids=torch.zeros(3, dtype=torch.long))": r"Batch.sequence_ids has shape \(3,\)",
    "preset('ppo')(make(), TokenStats(logprobs=zeros(2, 5)))": r"TokenStats.logprobs has shape \(2, 5\), but Batch",
    "Objective(masks=(Clip(),))": "masks holds Clip.*: expected masks",
    "make(response_mask=torch.ones(2, 3, dtype=torch.long)).response_mask.dtype": "no error: torch.bool",
}


@pytest.fixture(scope="module")
def unchecked_answers():
    """What users are told, in a process of its own: the run-time shape checks of the tests would speak first."""
    done = subprocess.run(
        [sys.executable, "-c", UNCHECKED], input="\n".join(WRONG), capture_output=True, text=True, check=True
    )
    return dict(zip(WRONG, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize(("call", "words"), WRONG.items())
def test_shapes_that_do_not_fit_are_named(unchecked_answers, call, words):
    assert re.search(words, unchecked_answers[call]), unchecked_answers[call]


COMPILED = """
import torch, holdfast
from cases import random_batch, cast, with_gradient
thorough = ("ppo", "trm+sspo+kl_cov", "clip_cov", "cppo")
for name in dict.fromkeys([*holdfast.list_presets(), *thorough]):
    objective = holdfast.preset(name)
    batch, stats = cast(*random_batch(4, 6), torch.float32)
    plan = objective.prepare(batch, stats)
    torch._dynamo.reset()
    backend = "aot_eager" if name in thorough else "eager"
    run = torch.compile(lambda b, s: objective(b, s, plan=plan).loss, fullgraph=True, backend=backend)
    eager, compiled = with_gradient(stats), with_gradient(stats)
    torch.autograd.backward(objective(batch, eager, plan=plan).loss)
    torch.autograd.backward(run(batch, compiled))
    torch.testing.assert_close(eager.logprobs.grad, compiled.logprobs.grad)
"""


@pytest.mark.slow
def test_every_preset_compiles_without_graph_breaks():
    """In a process of its own: the run-time shape checks of the tests are not part of what users compile."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_settings_of_one_part_that_fit_only_together_may_come_in_any_order():
    one = preset("trm_max+trm_avg", scope="token", delta=0.1, **{"trm_max.detector": "tv_upper"})
    assert one == preset("trm_max+trm_avg", **{"trm_max.detector": "tv_upper"}, delta=0.1, scope="token")
    assert one.masks[0] == TrmMax(0.1, "tv_upper", scope="token")
    assert one.masks[1] == TrmAvg()


def test_a_row_may_set_one_field_of_another_rows_part():
    for name in ("dapo+two_sided", "two_sided+dapo", "trm+dapo+two_sided"):
        assert preset(name).gate == Clip(0.2, 0.28, dual=4.0)
    assert preset("two_sided").gate == preset("two_sided+top_entropy").gate == Clip(0.2, 0.2, dual=4.0)
    assert preset("dapo+two_sided", dual=6.0).gate == Clip(0.2, 0.28, dual=6.0)
    assert preset("gspo+two_sided").pool == preset("gspo").pool

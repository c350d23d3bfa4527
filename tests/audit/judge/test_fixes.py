"""Configuration lines: options that exist in the released frameworks, numbers on the right scale, presets that load."""

import ast
import dataclasses
import math
import re
import tomllib
from pathlib import Path

import pytest

import holdfast
from holdfast.audit.judge.fixes import FIXES, FRAMEWORKS, settings
from holdfast.errors import ConfigError
from holdfast.train.settings.config import RunConfig

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "audit_fixes.md"


def released(pattern):
    found = sorted(ROOT.glob(pattern))
    if not found:
        pytest.skip(f"{pattern} is not installed here")
    return found[0].read_text(encoding="utf-8")


def bare(line):
    """Without comments."""
    return re.sub(r"#.*", "", line)


def overrides(text):
    """{path: value} of all Hydra overrides in a line; an advised option may come after "nearest"."""
    return dict(re.findall(r"\+?\b([a-z_]+(?:\.\w+)+)=(\S+)", bare(text)))


def yaml_paths(text):
    """{a.b.c: value} of a YAML file of plain mappings, comments left out."""
    stack, paths = [], {}
    for line in text.splitlines():
        if found := re.match(r"( *)'?([\w]+)'?:(.*)", line):
            stack = [*stack[: len(found[1]) // 2], found[2]]
            paths[".".join(stack)] = found[3].strip()
    return paths


@pytest.mark.parametrize("name", FIXES)
def test_verl_has_the_options(name):
    paths = yaml_paths(
        released(".venv-verl/lib/python3*/site-packages/verl/trainer/config/_generated_ppo_trainer.yaml")
    )
    given = overrides(settings(name)["verl"])
    assert given
    added = set(re.findall(r"\+([a-z_]+(?:\.\w+)+)=", bare(settings(name)["verl"])))
    assert set(given) - added <= set(paths)
    assert {path.rpartition(".")[0] for path in added} <= set(paths)


def test_verl_knows_the_modes():
    source = released(".venv-verl/lib/python3*/site-packages/verl/trainer/ppo/rollout_corr_helper.py")
    modes = {overrides(settings(n)["verl"]).get("algorithm.rollout_correction.rollout_rs") for n in FIXES} - {None}
    assert modes == {"seq_max_k2", "seq_mean_k3"}
    assert all(f'"{mode}"' in source for mode in modes)
    losses = released(".venv-verl/lib/python3*/site-packages/verl/trainer/ppo/core_algos.py")
    for name in ("covariance_control", "clip_cov"):
        mode = overrides(settings(name)["verl"])["actor_rollout_ref.actor.policy_loss.loss_mode"]
        assert f'register_policy_loss("{mode}")' in losses


@pytest.mark.parametrize("name", FIXES)
def test_trl_has_the_fields(name):
    source = released(".venv-trl/lib/python3*/site-packages/trl/trainer/grpo_config.py")
    fields = {n.target.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.AnnAssign)}
    fields |= {"per_device_train_batch_size", "gradient_accumulation_steps"}  # of transformers
    text = bare(settings(name)["TRL"]).replace("AsyncGRPOConfig", "")
    outside = re.sub(r"HoldfastGRPOTrainer\(.*\)", "", text)
    assert set(re.findall(r"\b(\w+)=(?!=)", outside)) <= fields | {"reward_funcs"}
    assert set(re.findall(r"\b(\w+_\w+)\b", outside.replace("token_", "").replace("completion_ids", ""))) <= fields | {
        "rollout_func", "sequence_", "truncate", "mask", "reward_funcs", "your_function", "enable_prefix_caching",
    }  # fmt: skip


def test_trl_knows_the_modes_and_reads_the_ratio_as_trainer_over_engine():
    source = released(".venv-trl/lib/python3*/site-packages/trl/trainer/grpo_trainer.py")
    for name in ("sequence_mask", "truncated_token_weights"):
        (mode,) = re.findall(r'vllm_importance_sampling_mode="(\w+)"', settings(name)["TRL"])
        assert f'"{mode}"' in source


@pytest.mark.parametrize("name", FIXES)
def test_ours_load(name):
    text = settings(name)["Holdfast"]
    if text.startswith("nothing"):
        return
    table = tomllib.loads(text)
    RunConfig.model_validate(table)
    if "objective" in table:
        holdfast.preset(table["objective"].pop("preset"), **table["objective"])


@pytest.mark.parametrize("name", FIXES)
def test_calls_of_our_trainer_load(name):
    for call in re.findall(r"objective=(.*)\)", bare(settings(name)["TRL"])):
        if call.startswith('"'):
            holdfast.preset(ast.literal_eval(call.split(")")[0]))
        else:
            node = ast.parse(call).body[0].value
            arguments = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
            holdfast.preset(ast.literal_eval(node.args[0]), **arguments)


@pytest.mark.parametrize("name", FIXES)
def test_prime_rl_lines_are_toml(name):
    text = settings(name)["prime-rl"]
    if "\n[" in text or text.startswith("["):
        tomllib.loads(text[text.index("[" if text.startswith("[") else "\n[") :])
    else:
        assert text.startswith(("no option", "nothing to set"))


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("framework", ["AReaL", "NeMo-RL"])
def test_options_of_others_are_cited(name, framework):
    """Their sources are not installed here: every option named is one that the page cites with its place."""
    page = DOCUMENT.read_text(encoding="utf-8")
    text = settings(name)[framework]
    assert overrides(text) or text.startswith(("no option", "nothing to set"))
    for path in overrides(text):
        assert f"`{path}`" in page


@pytest.mark.parametrize("name", FIXES)
def test_every_framework_has_a_line_and_the_page_shows_it(name):
    lines = settings(name)
    assert tuple(lines) == FRAMEWORKS
    assert not any(
        re.search(r"\{\w+[:}]", bare(line)) and "{level" not in line and "${" not in line for line in lines.values()
    )
    page = DOCUMENT.read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert FIXES[name].does in page


def test_one_threshold_on_every_scale():
    """k2 = r²/2 = .08: r = .4, a ratio of e^.4 = 1.492 or its inverse .6703."""
    lines = settings("sequence_mask", delta=0.08)
    assert overrides(lines["verl"])["algorithm.rollout_correction.rollout_rs_threshold"] == "0.08"
    assert "a ratio of 1.49" in lines["verl"]
    assert "clip_max=1.492" in lines["TRL"]
    assert "clip_min=0.6703" in lines["TRL"]
    assert "metric:kl_k2,agg:max,upper:0.08}" in lines["AReaL"]
    assert overrides(lines["NeMo-RL"])["loss_fn.truncated_importance_sampling_ratio"] == "1.492"
    assert overrides(lines["NeMo-RL"])["loss_fn.truncated_importance_sampling_ratio_min"] == "0.6703"
    assert tomllib.loads(lines["Holdfast"])["objective"]["delta"] == 0.08


def test_a_mean_on_nemos_scale():
    """k3 .002 is a root mean square of √.004 = .06325: mean exp|r| about 1.063."""
    line = settings("mean_mask", delta_avg=0.002)["NeMo-RL"]
    assert overrides(line)["grpo.seq_logprob_error_threshold"] == f"{1 + math.sqrt(0.004):.4g}" == "1.063"


def test_traps_are_named():
    assert "kl_k3" not in bare(settings("mean_mask", delta_avg=0.002)["AReaL"])
    assert "metric:kl_k2,agg:mean,upper:0.002}" in settings("mean_mask", delta_avg=0.002)["AReaL"]
    for name in ("sequence_mask", "mean_mask", "length_neutral_mask", "truncated_token_weights"):
        assert "v1 trainer ignores" in settings(name)["verl"]
        assert overrides(settings(name)["verl"])["algorithm.rollout_correction.bypass_mode"] == "false"
    assert "default is sequence_mask" in settings("truncated_token_weights")["TRL"]
    assert "clip_ratio alone does nothing" in settings("clip_higher")["verl"]


@pytest.mark.parametrize(("name", "numbers", "says"), [
    ("sequence_msk", {}, "sequence_mask"),
    ("sequence_mask", {"delt": 0.1}, "it has: delta"),
    ("clip_on_rollout", {"delta": 0.1}, "it has: none"),
])  # fmt: skip
def test_unknown_names_are_refused(name, numbers, says):
    with pytest.raises(ConfigError, match=says):
        settings(name, **numbers)


def test_every_check_that_has_settings_names_a_recommendation():
    used = set()
    for path in (ROOT / "src" / "holdfast" / "audit" / "judge" / "checks").rglob("*.py"):
        used |= set(re.findall(r'settings\("(\w+)"', path.read_text(encoding="utf-8")))
    assert used
    assert used <= set(FIXES)


def test_fixes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FIXES["clip_cov"].does = ""


READ = {
    "slime": "eps-clip eps-clip-high use-tis tis-clip custom-tis-function-path use-rollout-logprobs entropy-coef "
    "update-weights-interval get-mismatch-metrics rollout-temperature rollout-top-p rollout-top-k "
    "log-probs-max-tokens-per-gpu max-tokens-per-gpu n-samples-per-prompt sglang-enable-fp32-lm-head custom-rm-path "
    "check-weight-update-equal sglang-disable-radix-cache",
    "miles": "eps-clip eps-clip-high use-tis tis-clip custom-tis-function-path use-rollout-logprobs entropy-coef "
    "max-weight-staleness get-mismatch-metrics rollout-temperature rollout-top-p rollout-top-k "
    "log-probs-max-tokens-per-gpu max-tokens-per-gpu n-samples-per-prompt sglang-enable-fp32-lm-head custom-rm-path "
    "check-weight-update-equal sglang-disable-radix-cache",
    "OpenRLHF": "algo.advantage.is_correction_level algo.advantage.is_correction_mode "
    "algo.advantage.is_correction_gating "
    "algo.advantage.is_correction_threshold actor.eps_clip_low_high actor.entropy_coef train.async_queue_size "
    "train.async_enable rollout.temperature rollout.top_p rollout.max_tokens_per_gpu train.max_tokens_per_gpu "
    "algo.advantage.estimator rollout.n_samples_per_prompt reward.remote_url vllm.enable_prefix_caching",
    "ms-swift": "epsilon epsilon_high rollout_importance_sampling_mode rollout_importance_sampling_threshold "
    "off_policy_sequence_mask_delta top_entropy_quantile num_iterations steps_per_generation "
    "log_rollout_offpolicy_metrics temperature top_p top_k advantage_estimator num_generations external_plugins "
    "reward_funcs vllm_mode vllm_enable_prefix_caching",
}
"""Arguments that were seen in the released sources which the page names."""


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("framework", READ)
def test_flags_are_those_that_were_read(name, framework):
    text = settings(name)[framework]
    given = set(re.findall(r"--([\w.-]+)", bare(text)))
    assert given <= set(READ[framework].split())
    assert given or text.startswith(("no option", "nothing to set"))
    assert f"[{framework}]\n{text}" in DOCUMENT.read_text(encoding="utf-8")

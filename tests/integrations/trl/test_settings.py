"""Who decides what: settings that the objective replaces, lengths, other distributions, arguments as in TRL."""

import warnings

import pytest
from trl import GRPOConfig, TrlParser

import holdfast
from holdfast import ConfigError
from holdfast.integrations.trl import HoldfastGRPOConfig, HoldfastGRPOTrainer
from holdfast.integrations.trl.settings import resolve, warn_of_length_weights, warn_of_other_distribution
from holdfast.objectives.parts.reduce import Normalize
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_fixed_length_is_the_configs(tmp_path):
    """A gradient 1/128 of TRL's at 8 tokens, were it 1024 as in the table."""
    args = runs.config(tmp_path, max_completion_length=8)
    assert resolve("dr_grpo", args)[0].normalize.length == 8
    with pytest.warns(UserWarning, match=r"length = 1024, GRPOConfig.max_completion_length is 8: .* 0.00781 of TRL's"):
        assert resolve(holdfast.preset("dr_grpo"), args)[0].normalize.length == 1024
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(holdfast.preset("dr_grpo", length=8), args)[0].normalize.length == 8
        assert resolve("grpo", args)[0].normalize.length is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generation_kwargs": {"top_p": 0.9}}, r"generation_kwargs.top_p = 0.9: the engine samples from another"),
        ({"generation_kwargs": {"min_tokens": 4}}, r"generation_kwargs.min_tokens = 4"),
        ({"generation_kwargs": {"temperature": 0.7}}, r"generation_kwargs.temperature = 0.7"),
        ({"generation_kwargs": {"logit_bias": {3: 1.0}}}, r"generation_kwargs.logit_bias"),
        ({"top_k": 20, "repetition_penalty": 1.1}, r"top_k = 20, repetition_penalty = 1.1"),
        ({"vllm_structured_outputs_regex": "[0-9]+"}, r"vllm_structured_outputs_regex"),
    ],
)
def test_other_distributions_are_warned_of(settings, words, tmp_path):
    args = runs.config(tmp_path, **settings)
    with pytest.warns(UserWarning, match=words):
        warn_of_other_distribution(holdfast.preset("trm"), args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_distribution(holdfast.preset("grpo"), args)


@pytest.mark.parametrize(
    "settings", [{}, {"generation_kwargs": {"top_p": 1.0, "top_k": -1, "seed": 3}}, {"top_p": 0.9, "top_k": 0}]
)
def test_what_changes_nothing_is_not_warned_of(settings, tmp_path):
    if "top_p" in settings:  # overridden where it counts
        settings = settings | {"generation_kwargs": {"top_p": 1.0}}
    args = runs.config(tmp_path, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_distribution(holdfast.preset("trm"), args)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "bnpo"}, "loss_type = 'bnpo' .now: preset 'dapo' with high = 0.2"),
        ({"loss_type": "sapo"}, "loss_type = 'sapo' .now: objective = 'sapo'"),
        ({"top_entropy_quantile": 0.2}, r"TopEntropy\(top=...\)"),
        ({"off_policy_mask_threshold": 0.1}, r"Opsm\(max_mean_k1=..., policy='old'\)"),
    ],
)
def test_refusals_name_the_row_or_part(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        resolve("grpo", runs.config(tmp_path, **settings))


def test_a_default_written_out_is_seen(tmp_path):
    here = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    with pytest.raises(ConfigError, match=r"loss_type = 'dapo' .now: objective = 'dapo'"):
        HoldfastGRPOConfig(objective="trm", loss_type=GRPOConfig(**here).loss_type, **here)
    args = HoldfastGRPOConfig(objective="grpo", **here)
    assert args.loss_type is None and args.num_generations == 8
    assert resolve("grpo", args)[1].loss_type == "dapo", "what TRL reads is TRL's own default"


def test_parser_of_trl(tmp_path):
    """`trl grpo` is a TrlParser over GRPOConfig: flags and YAML files carry the objective."""
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nobjective: trm+sspo\nrollouts_every: 5\n")
    (args,) = TrlParser(HoldfastGRPOConfig).parse_args_and_config(["--config", str(yaml), "--top_logprobs", "20"])
    assert (args.objective, args.rollouts_every, args.top_logprobs) == ("trm+sspo", 5, 20)
    with pytest.raises(ConfigError, match=r"epsilon = 0\.2"):
        TrlParser(HoldfastGRPOConfig).parse_args_and_config(["--config", str(yaml), "--epsilon", "0.2"])


def test_objective_in_the_config_and_arguments_by_place(tmp_path):
    args = runs.config(tmp_path)
    whole = HoldfastGRPOConfig(**{f: getattr(args, f) for f in ("output_dir", "use_cpu", "bf16", "report_to")},
                               num_generations=4, per_device_train_batch_size=4, objective="grpo+kl_cov")  # fmt: skip
    trainer = HoldfastGRPOTrainer(runs.model(), runs.small_digits, whole, runs.PROMPTS, runs.PROMPTS, runs.TOKENIZER)
    assert trainer.objective.name == "grpo+kl_cov" and trainer.processing_class is runs.TOKENIZER
    assert trainer.eval_dataset is not None
    with pytest.raises(TypeError, match="several values for processing_class"):
        HoldfastGRPOTrainer(
            runs.model(), runs.small_digits, whole, runs.PROMPTS, None, runs.TOKENIZER, processing_class=runs.TOKENIZER
        )
    with pytest.raises(ConfigError, match=r"objective is 'trm' as an argument and 'grpo.kl_cov' in"):
        HoldfastGRPOTrainer(runs.model(), runs.small_digits, whole, runs.PROMPTS, objective="trm")
    with pytest.raises(ConfigError, match="objective is missing"):
        HoldfastGRPOTrainer(runs.model(), runs.small_digits, args, runs.PROMPTS)


def test_a_sequence_ratio_summed_over_tokens_is_warned_of():
    with pytest.warns(UserWarning, match="sequences weigh by their length"):
        warn_of_length_weights(holdfast.preset("gspo", normalize=Normalize("token_mean")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("gspo", "luspo", "sspo", "grpo", "dapo", "vespo"):
            warn_of_length_weights(holdfast.preset(name))


def test_bounds_need_reports(tmp_path):
    for row, detector, field in (
        ("trm_max", "kl_lower", "kl_rollout_lower"),
        ("trm_token", "tv_upper", "tv_rollout_upper"),
        ("trm_prefix", "tv_upper", "tv_rollout_upper"),
    ):
        objective = holdfast.preset(row, detector=detector)
        with pytest.raises(ConfigError, match=rf"needs {field}, .*top_logprobs=20"):
            resolve(objective, runs.config(tmp_path))
        assert resolve(objective, runs.config(tmp_path), top_logprobs=20)[0] == objective
    with pytest.raises(ConfigError, match=r"needs kl_rollout, which TRL does not give: .*'tv_upper'"):
        resolve(holdfast.preset("trm_token"), runs.config(tmp_path), top_logprobs=20)
    with pytest.raises(ConfigError, match="'opd' needs a teacher's log-probabilities, which TRL does not"):
        resolve(holdfast.preset("opd"), runs.config(tmp_path), top_logprobs=20)
    with pytest.raises(ConfigError, match="top_logprobs = 4: transformers' generate reports no"):
        HoldfastGRPOTrainer(
            runs.model(), runs.small_digits, runs.config(tmp_path), runs.PROMPTS, objective="grpo", top_logprobs=4
        )

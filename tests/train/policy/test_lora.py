"""Training low-rank adapters: what is trained, what engines get, what a checkpoint holds."""

import copy

import pytest
import torch

from holdfast.errors import ConfigError, DataError
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.train.keep.checkpoint import latest_checkpoint
from holdfast.train.keep.folder import RunFolder
from holdfast.train.policy.lora import Merged, add_lora, load_adapter
from holdfast.train.settings.config import LoraConfig
from holdfast.train.setup import set_up

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning:transformers")

LORA = ["--lora.rank", "4", "--engine.precision", "float32", "--engine.lag", "0", "--optimizer.learning_rate", "0.01"]


def tiny():
    return tiny_model(character_tokenizer("0123456789"), hidden=16, layers=1, heads=2)


def first_factors(**options):
    """The A of every adapter."""
    made = add_lora(tiny(), LoraConfig(rank=2, **options.pop("settings", {})), **{"base": "b", "seed": 0} | options)
    return [p for name, p in made.named_parameters() if "lora_A" in name]


def test_adapters_are_those_of_the_settings():
    """Seven linear layers; alpha 6 over rank 2 scales by 3."""
    made = add_lora(tiny(), LoraConfig(rank=2, alpha=6.0), base="where it is", seed=0)
    settings = made.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.task_type) == (2, 6.0, "CAUSAL_LM")
    assert settings.base_model_name_or_path == "where it is"
    layers = [module for module in made.modules() if hasattr(module, "lora_A")]
    assert [module.scaling["default"] for module in layers] == [3.0] * 7
    assert len(first_factors(settings={"targets": ["q_proj"]})) == 1


def test_a_seed_is_the_start_of_the_adapters_and_of_nothing_else():
    state = torch.get_rng_state()
    first, again, other = (first_factors(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_whole_weights_are_of_the_model_s_own_type():
    model = tiny().bfloat16()
    add_lora(model, LoraConfig(rank=2), base="b", seed=0)
    whole = Merged(model).state_dict()
    assert {tensor.dtype for tensor in whole.values()} == {torch.bfloat16}
    assert not any(tensor.requires_grad for tensor in whole.values())
    assert Merged(model).config is model.config


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_the_embedding_and_what_is_tied_to_it_take_no_adapter(target):
    """Engines would get one matrix for both, or the one without the adapter."""
    with pytest.raises(ConfigError, match=rf"lora.targets = \['{target}'\]: .*{target} is the embedding or tied to it"):
        first_factors(settings={"targets": [target]})


def test_a_head_of_its_own_takes_an_adapter():
    model = tiny()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    add_lora(model, LoraConfig(rank=2, targets=["lm_head"]), base="b", seed=0)
    with torch.no_grad():
        model.lm_head.lora_B["default"].weight.fill_(1.0)
    change = Merged(model).state_dict()["lm_head.weight"] - model.lm_head.base_layer.weight
    assert torch.allclose(change, 16 * model.lm_head.lora_A["default"].weight.sum(0).expand_as(change), atol=1e-4)


def test_an_adapter_that_cannot_be_loaded_says_so(tmp_path):
    made = add_lora(tiny(), LoraConfig(rank=2, targets=["q_proj"]), base="", seed=0)
    with pytest.raises(DataError, match=f"the adapter in {tmp_path} cannot be read"):
        load_adapter(made, tmp_path)
    other = add_lora(tiny(), LoraConfig(rank=2, targets=["k_proj"]), base="", seed=0)
    other.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"is of another model: it has .*k_proj"):
        load_adapter(made, tmp_path)


@pytest.fixture
def adapted(small_config, tmp_path, warm_starts):
    """A run set up with LoRA, whose adapters are moved away from zero."""
    config = small_config(*LORA)
    run = set_up(config, RunFolder(tmp_path), resume=False, warm_starts=warm_starts, progress=lambda *progress: None)
    plain = copy.deepcopy(run.saved.get_base_model().state_dict())
    with torch.no_grad():
        for name, parameter in run.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    yield run, plain
    run.close()


def test_only_adapters_are_trained_and_the_head_is_frozen(adapted):
    run, _ = adapted
    names = [name for name, p in run.policy.model.named_parameters() if p.requires_grad]
    assert names and all(".lora_" in name for name in names)
    assert not run.policy.model.get_output_embeddings().weight.requires_grad and run.policy.head is not None
    assert sum(len(g["params"]) for g in run.optimizer.param_groups) == len(names) == len(run.updater.parameters)


def test_engines_get_whole_weights_that_compute_what_the_adapted_model_computes(adapted):
    run, plain = adapted
    whole = run.engine_view.state_dict()
    assert {name.replace(".base_layer.", ".") for name in plain if ".lora_" not in name} == set(whole)
    fresh = type(run.policy.model)(run.policy.model.config).eval()
    fresh.load_state_dict(whole)
    ids = torch.arange(4, 12).unsqueeze(0)
    with torch.no_grad():
        ours, theirs = run.policy.model(input_ids=ids).logits, fresh(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(whole["model.layers.0.self_attn.q_proj.weight"],
                              plain["model.layers.0.self_attn.q_proj.base_layer.weight"])  # fmt: skip


def test_the_policy_moves_the_base_does_not_and_engine_and_trainer_agree(small_run, warm_starts):
    folder, summary = small_run("lora", *LORA)
    lines = folder.read_metrics()[1:]
    assert any(line["grad_norm"] > 0 for line in lines)
    # The engine runs W + (alpha/r) BA, the trainer Wx + (alpha/r) B(Ax): rounding apart, the same policy.
    assert all(line["abs_log_ratio_max"] < 1e-3 for line in lines)
    assert 0 < summary["trained_parameters"] < 0.5 * summary["parameters"]
    saved = latest_checkpoint(folder.checkpoints) / "model"
    assert (saved / "adapter_config.json").is_file() and not (saved / "model.safetensors").exists()
    again = peft.AutoPeftModelForCausalLM.from_pretrained(saved)
    assert any(bool(p.any()) for name, p in again.named_parameters() if "lora_B" in name)


@pytest.mark.slow
def test_a_resumed_run_repeats_it_bit_for_bit(small_run):
    whole, _ = small_run("whole", *LORA)
    asked = iter([False, False, False, True])
    cut, _ = small_run("cut", *LORA, stop=lambda: next(asked))
    small_run("cut", *LORA, resume=True)
    for folder in (whole, cut):
        assert len(folder.read_metrics()) == 5
    names = ("loss", "grad_norm", "entropy", "reward_mean", "eval_accuracy", "kl_exact_max")
    for first, second in zip(whole.read_metrics(), cut.read_metrics(), strict=True):
        assert {n: first.get(n) for n in names} == {n: second.get(n) for n in names}


@pytest.mark.slow
def test_the_reference_is_the_model_without_its_adapters(small_run):
    kl = "{preset = 'ppo', penalties = [{kind = 'kl', coefficient = 5.0, policy = 'ref'}]}"
    strong, _ = small_run("strong", *LORA, "--steps", "3", "--objective", kl)
    free, _ = small_run("free", *LORA, "--steps", "3", "--objective", "{preset = 'ppo'}")
    first, second = (folder.read_metrics()[1:] for folder in (strong, free))
    # B = 0 at the start: the policy is its own reference, and the penalty is nothing in step 1 and something after it.
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], abs=1e-6)
    assert first[2]["loss"] != pytest.approx(second[2]["loss"], abs=1e-6)


@pytest.mark.slow
def test_asynchronous_engines_get_whole_weights_too(small_run):
    folder, summary = small_run("ahead", *LORA, "--async.staleness", "1", "--steps", "3")
    assert summary["sequences"]["trained"] == 48
    assert [line["policy_lag"] for line in folder.read_metrics()[1:]] == [0, 1, 1]


def test_layers_that_are_not_there_are_named(small_config, tmp_path, warm_starts):
    config = small_config(*LORA, "--lora.targets", "['quuery']")
    layers = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ConfigError, match=rf"lora.targets = \['quuery'\].*linear layers here: {layers}$"):
        set_up(config, RunFolder(tmp_path), resume=False, warm_starts=warm_starts, progress=lambda *progress: None)


def test_gradient_checkpointing_and_adapters_go_together(small_run):
    plain, _ = small_run("plain", *LORA, "--steps", "2")
    recomputed, _ = small_run("recomputed", *LORA, "--steps", "2", "--model.gradient_checkpointing", "true")
    for first, second in zip(plain.read_metrics()[1:], recomputed.read_metrics()[1:], strict=True):
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
        assert first["grad_norm"] > 0 or first["reward_std"] == 0

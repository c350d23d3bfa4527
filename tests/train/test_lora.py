"""Training low-rank adapters: what is trained, what engines get, what a checkpoint holds."""

import copy

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.train.checkpoint import latest_checkpoint
from holdfast.train.folder import RunFolder
from holdfast.train.setup import set_up

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning:transformers")

LORA = ["--lora.rank", "4", "--engine.precision", "float32", "--engine.lag", "0", "--optimizer.learning_rate", "0.01"]


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


def test_the_reference_is_the_model_without_its_adapters(small_run):
    kl = "{preset = 'ppo', penalties = [{kind = 'kl', coefficient = 5.0, policy = 'ref'}]}"
    strong, _ = small_run("strong", *LORA, "--steps", "3", "--objective", kl)
    free, _ = small_run("free", *LORA, "--steps", "3", "--objective", "{preset = 'ppo'}")
    first, second = (folder.read_metrics()[1:] for folder in (strong, free))
    # B = 0 at the start: the policy is its own reference, and the penalty is nothing in step 1 and something after it.
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], abs=1e-6)
    assert first[2]["loss"] != pytest.approx(second[2]["loss"], abs=1e-6)


def test_asynchronous_engines_get_whole_weights_too(small_run):
    folder, summary = small_run("ahead", *LORA, "--async.staleness", "1", "--steps", "3")
    assert summary["sequences"]["trained"] == 48
    assert [line["policy_lag"] for line in folder.read_metrics()[1:]] == [0, 1, 1]


def test_layers_that_are_not_there_are_named(small_config, tmp_path, warm_starts):
    config = small_config(*LORA, "--lora.targets", "['quuery']")
    with pytest.raises(ConfigError, match=r"lora.targets = \['quuery'\].*linear layers here: .*q_proj"):
        set_up(config, RunFolder(tmp_path), resume=False, warm_starts=warm_starts, progress=lambda *progress: None)


def test_gradient_checkpointing_and_adapters_go_together(small_run):
    plain, _ = small_run("plain", *LORA, "--steps", "2")
    recomputed, _ = small_run("recomputed", *LORA, "--steps", "2", "--model.gradient_checkpointing", "true")
    for first, second in zip(plain.read_metrics()[1:], recomputed.read_metrics()[1:], strict=True):
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
        assert first["grad_norm"] > 0 or first["reward_std"] == 0

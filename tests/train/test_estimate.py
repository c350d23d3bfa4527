"""The memory of a run from shapes and settings: by hand for a small model, by law for changes, for the examples."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from holdfast.errors import ConfigError
from holdfast.objectives.parts.penalties import Kl
from holdfast.rollout.models import character_tokenizer, tiny_model
from holdfast.rollout.outside.vllm import GIB, OVERHEAD
from holdfast.train.estimate import Estimate, estimate, shape_of, shape_of_run
from holdfast.train.policy.unpadded import sharing_pays
from holdfast.train.settings.configfile import build_config, load_config
from holdfast.train.settings.objective import objective_of

EXAMPLES = Path(__file__).parents[2] / "examples"
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
QWEN3 = {
    "Qwen/Qwen3-0.6B": HEADS | {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072},
    "Qwen/Qwen3-1.7B": HEADS | {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144},
    "Qwen/Qwen3-4B": HEADS
    | {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32},
}


def qwen3(name):
    return transformers.Qwen3Config(**QWEN3[name], tie_word_embeddings=True)


@pytest.fixture(scope="module")
def shape():
    """Width 4, one layer, one head of 4, gated layer 8, vocabulary 300."""
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes |= {"head_dim": 4, "intermediate_size": 8, "vocab_size": 300, "tie_word_embeddings": True}
    return shape_of(transformers.Qwen3Config(**sizes))


def config(*, lora=0, **sections):
    plain = {"engine": {"exact_kl": False, "precision": "float32"}, "sampling": {"max_tokens": 6}}
    plain |= {"batch": {"prompts": 2, "group_size": 3, "micro_batch_tokens": 1000}}
    plain |= {"evaluation": {"problems": 5}, "lora": {"rank": lora}}
    merged = {name: plain.get(name, {}) | sections.get(name, {}) for name in plain.keys() | sections.keys()}
    return build_config(merged)


def estimated(shape, settings, prompt=4, device="cpu"):
    return estimate(settings, shape, objective_of(settings), prompt_tokens=prompt, device=device)


def test_a_shape_is_counted_without_memory(shape):
    """Embedding 1200; attention 4·16; gated layer 3·32; norms 2·4 + 2·4 + 4."""
    assert (shape.linear, shape.head, shape.parameters) == (160, 1200, 1200 + 160 + 20)
    assert shape.ins_and_outs == 4 * 8 + 3 * 12
    assert (shape.tied, shape.normed, shape.cached) == (True, True, 8)
    assert shape_of(qwen3("Qwen/Qwen3-4B")).parameters == 4_022_468_096


def test_the_tiny_model_s_shape_is_the_one_that_is_built():
    settings = config(model={"hidden": 32, "layers": 2, "heads": 2})
    model = tiny_model(character_tokenizer("0123"), hidden=32, layers=2, heads=2)
    assert shape_of_run(settings, "0123").parameters == sum(p.numel() for p in model.parameters())


def test_every_part_by_hand(shape):
    """Six responses of 10 tokens (4 of them prompt) in one micro-batch, 36 tokens of them sampled.

    Sharing two prompts saves 16 of the 60 tokens: 6·4·16 = 384 operations against 2·8 + 36·10 - 6·50 = 76.

    Activations, in numbers a token: norms 2·3·4, attention 5·4, norms of heads 2·8, gated layer 4·8: 92, and 3·8 for
    the gradients of a layer: 116. Head: its gradient 1200, 36·4 hidden states four times. Engine: its queue 1380, its
    products 160 + 1200; keys and values of 6·6 responses and 2·4 prompts, 8 numbers each, and those of the responses
    twice more; 5 tables of 6 rows. Evaluation: 5 rows of 10 tokens, twice (one layer is all there is), 5 tables.
    """
    parts = estimated(shape, config()).parts
    assert parts == {
        "trainer weights": 1380 * 4,
        "reference policy": 0,
        "gradients": 1380 * 4,
        "optimiser state": 2 * 1380 * 4,
        "copy for the brake": 0,
        "activations": 44 * 116 * 4,
        "LM head": 1200 * 4 + 4 * 36 * 4 * 4,
        "whole distributions": 0,
        "engine weights": (1380 + 1360) * 4,
        "engine cache": (36 + 8) * 8 * 4 + 2 * 36 * 8 * 4,
        "drawing tokens": 5 * 6 * 300 * 4,
        "evaluation": 2 * 50 * 8 * 4 + 5 * 5 * 300 * 4,
    }


def test_stages_add_up_what_is_there_at_the_same_time(shape):
    found = replace(estimated(shape, config()), freed=0.0)
    base = 4 * 1380 * 4
    engine = 2740 * 4
    assert found.at("updating") == base + engine + 44 * 116 * 4 + 1200 * 4 + 4 * 36 * 4 * 4
    assert found.at("writing responses") == base + engine + (44 + 72) * 8 * 4 + 36_000
    assert found.at("evaluating") == base + engine + 2 * 50 * 8 * 4 + 30_000
    assert found.peak == "writing responses" and found.total == found.at("writing responses")
    assert found.largest == "drawing tokens"


@pytest.mark.parametrize(("lora", "trained"), [(0, 1380), (2, 2 * (32 + 36))], ids=["all weights", "adapters"])
def test_the_brake_keeps_a_copy_of_what_is_trained_and_answers_what_is_held_out(shape, lora, trained):
    """Of 8 prompts 7 are held out, with 3 responses of 10 tokens each: 21 rows, more than the 5 of an evaluation."""
    batch, guard = {"prompts": 8, "group_size": 3}, {"brake": "certificate", "brake_share": 0.875}
    found = {on: estimated(shape, config(lora=lora, batch=batch, guard=guard if on else {})) for on in (False, True)}
    copied = 3 * trained * 4  # weights and two moments
    assert found[True].parts["copy for the brake"] == copied
    assert found[True].parts["evaluation"] == 2 * 210 * 8 * 4 + 5 * 21 * 300 * 4
    bare = {on: replace(one, freed=0.0) for on, one in found.items()}
    assert bare[True].at("updating") - bare[False].at("updating") == copied
    more = found[True].parts["evaluation"] - found[False].parts["evaluation"]
    assert bare[True].at("evaluating") - bare[False].at("evaluating") == copied + more
    assert bare[True].at("writing responses") == bare[False].at("writing responses")
    controlled = estimated(shape, config(lora=lora, batch=batch, guard=guard | {"brake": "controller"}))
    assert controlled.parts["copy for the brake"] == copied
    assert controlled.parts["evaluation"] == found[False].parts["evaluation"], "it asks for no new answers"


def test_a_cpu_keeps_a_tenth_that_was_freed_and_a_gpu_does_not(shape):
    plain = 4 * 1380 * 4 + 2740 * 4 + 2 * 50 * 8 * 4 + 30_000
    found = [estimated(shape, config(), device=device).at("evaluating") for device in ("cpu", "cuda")]
    assert found == [round(1.1 * plain), plain]


@pytest.mark.parametrize(
    ("change", "part", "factor"),
    [
        ({"batch": {"micro_batch_tokens": 30}}, "activations", 0.5),
        ({"batch": {"micro_batch_tokens": 1}}, "activations", 10 / 44),
        ({"model": {"unpadded": False}}, "activations", 60 / 44),
        ({"model": {"autocast": True}}, "activations", (64 + 40 + 72 + 48 + 64 + 48 + 320 / 44) / 464),
        ({"model": {"dtype": "bfloat16"}}, "trainer weights", 0.5),
        ({"model": {"dtype": "bfloat16"}}, "optimiser state", 0.5),
        ({"engine": {"lag": 3}}, "engine weights", (4 * 1380 + 1360) / 2740),
        ({"engine": {"precision": "bfloat16"}}, "engine weights", 0.5),
        ({"engine": {"kind": "server"}}, "engine weights", 0.0),
        ({"async": {"staleness": 1}}, "engine weights", (2 * 1380 + 1360) / 2740),
        ({"engine": {"kind": "server"}}, "evaluation", 0.0),
        ({"engine": {"kind": "server"}, "async": {"staleness": 1}}, "evaluation", 1.0),
    ],
)
def test_settings_change_what_they_should(shape, change, part, factor, monkeypatch):
    monkeypatch.setattr("holdfast.train.estimate.multiplies_bfloat16", lambda device: True)
    before, after = estimated(shape, config()).parts, estimated(shape, config(**change)).parts
    assert after[part] == pytest.approx(factor * before[part])


def test_a_cpu_without_bfloat16_holds_an_engines_layers_in_float32(shape, monkeypatch):
    """The queue of 1380 stays narrow; the 1360 weights of products do not, and the cache does."""
    monkeypatch.setattr("holdfast.train.estimate.multiplies_bfloat16", lambda device: device.type != "cpu")
    wide, narrow = (
        estimated(shape, config(engine={"precision": "bfloat16"}), device=device).parts for device in ("cpu", "cuda")
    )
    assert wide["engine weights"] == 1380 * 2 + 1360 * 4
    assert narrow["engine weights"] == 1380 * 2 + 1360 * 2
    assert wide["engine cache"] == narrow["engine cache"]


def test_whole_distributions_count_only_where_they_are_kept(shape):
    """4 bytes x 300 tokens x 6 positions x 6 responses; with 3e8 tokens they are beyond 2 GB and not asked for."""
    unwritten = config(engine={"exact_kl": None})
    assert estimated(shape, unwritten).parts["whole distributions"] == 4 * 300 * 6 * 6
    large = replace(shape, vocabulary=300_000_000)
    assert estimated(large, unwritten).parts["whole distributions"] == 0
    assert estimated(shape, config()).parts["whole distributions"] == 0


def test_prompts_are_shared_by_the_rule_of_the_layout(shape):
    """On a GPU a masked pair counts double, and packed attention shares nothing."""
    both = [estimated(shape, config(), device=device).parts["activations"] for device in ("cpu", "cuda")]
    rows = [44 if sharing_pays(4, 16, prompts=2, rows=6, prompt=4, answer=6, longest=10, cpu=cpu) else 60
            for cpu in (True, False)]  # fmt: skip
    assert [size / 116 / 4 for size in both] == rows
    packed = config(model={"attention": "flex_attention"})
    assert estimated(shape, packed).parts["activations"] == 60 * 116 * 4


def test_a_reference_policy_is_a_copy_unless_adapters_can_be_switched_off(shape):
    objective = replace(objective_of(config()), penalties=(Kl(),))
    for rank, size in ((0, 1380 * 4), (2, 0)):
        found = estimate(config(lora=rank), shape, objective, prompt_tokens=4, device="cpu")
        assert found.parts["reference policy"] == size


def test_recomputed_layers_keep_their_input_alone(shape):
    """A token: one layer of 92 and its 24, and 4 for every layer."""
    assert estimated(shape, config(model={"gradient_checkpointing": True})).parts["activations"] == 44 * 120 * 4


def test_whole_distributions_are_608_kilobytes_a_token():
    """Kept from the rollout to the update; written position by position before, and read in micro-batches after, in
    place of the head's gradient, which comes when they are gone."""
    large = shape_of(qwen3("Qwen/Qwen3-0.6B"))
    with_them, without = (estimated(large, config(engine={"exact_kl": exact})).parts for exact in (True, False))
    assert with_them["whole distributions"] == 36 * 151_936 * 4 == 36 * 607_744
    assert with_them["drawing tokens"] - without["drawing tokens"] == 36 * 607_744
    assert with_them["LM head"] == without["LM head"] == (151_936 + 4 * 36) * 1024 * 4
    frozen = estimated(large, config(lora=2, engine={"exact_kl": True})).parts
    assert frozen["LM head"] == 36 * 607_744 + 2 * 36 * 1024 * 4


def test_adapters_are_all_that_has_gradients(shape):
    """Rank 2: 2·68 numbers; the frozen head has no gradient."""
    parts = estimated(shape, config(lora=2)).parts
    assert parts["trainer weights"] == (1380 + 136) * 4
    assert (parts["gradients"], parts["optimiser state"]) == (136 * 4, 2 * 136 * 4)
    assert parts["LM head"] == 4 * 36 * 4 * 4
    half = estimated(shape, config(lora=2, model={"dtype": "bfloat16"})).parts
    assert half["trainer weights"] == 1380 * 2 + 136 * 4 and half["gradients"] == 136 * 4


def test_the_cache_is_never_more_than_its_room():
    """28 layers of 8 heads of 128: 229,376 bytes a token in float32; 1 GiB has room for 4681 of them. 46 rows of groups
    of 3 have 16 prompts."""
    large, room = shape_of(qwen3("Qwen/Qwen3-0.6B")), {"cache_gib": 1.0}
    settings = config(engine=room, evaluation=room | {"problems": 999}, batch={"prompts": 333, "group_size": 3})
    parts = estimated(large, settings, prompt=94).parts
    token = 2 * 28 * 8 * 128 * 4
    rows = -(-999 // -(-999 // (GIB // (100 * token))))
    assert rows == 46 and rows * 100 * token <= GIB
    assert parts["engine cache"] == (rows * 6 + 16 * 94) * token + 2 * rows * 6 * token // 28
    reading = rows * 94 * (3 * 3072 + 2 * 2048 + 4 * 1024) * 4  # more than the five tables of drawing
    assert parts["evaluation"] == rows * 100 * token + 3 * (rows * 100 * token // 28) + reading
    assert parts["drawing tokens"] == 5 * rows * 151_936 * 4, "16 prompts take less to read"


@pytest.mark.parametrize(("device", "extra"), [("cuda", OVERHEAD), ("cpu", 0)])
def test_vllm_has_its_room_and_sleeps_during_updates(shape, device, extra):
    engine = {"kind": "vllm", "precision": "bfloat16", "cache_gib": 2.0}
    found = estimated(shape, config(engine=engine), device=device)
    assert found.parts["engine weights"] == pytest.approx((1380 + 1200) * 2 + extra, abs=1)
    assert found.parts["engine cache"] == 2 * GIB
    awake = estimated(shape, config(engine=engine | {"sleep": False}), device=device)
    asleep, up = (replace(one, freed=0.0).at("updating") for one in (found, awake))
    assert up - asleep == found.parts["engine weights"] + 2 * GIB


def test_what_does_not_fit_is_refused_with_parts_and_settings():
    found = Estimate({"activations": 3 * 10**9, "gradients": 10**9}, {"updating": ("gradients", "activations")})
    found.check(4 * 10**9, "this GPU")
    found.check(None, "this GPU")
    with pytest.raises(ConfigError) as refused:
        found.check(4 * 10**9 - 1, "this GPU")
    message = str(refused.value)
    assert "needs about 4.00 GB of memory in its largest stage (updating), and 4.00 GB are free on this GPU" in message
    assert message.index("activations 3.00 GB (model.gradient_checkpointing = true") < message.index(
        "gradients 1.00 GB"
    )
    assert "model.memory_check = false" in message


@pytest.mark.parametrize(
    ("example", "least", "most"),
    [("gsm8k.toml", 30, 60), ("tool_use.toml", 30, 60), ("async.toml", 30, 70), ("lora.toml", 25, 40)],
)
def test_the_examples_for_one_gpu_fit_80_gb(example, least, most):
    settings = load_config(EXAMPLES / example, [])
    found = estimated(shape_of(qwen3(settings.model.source)), settings, prompt=400, device="cuda")
    assert least < found.total / 1e9 < most, {name: round(size / 1e9, 2) for name, size in found.parts.items()}


def test_whole_weights_of_4b_do_not_fit_on_80_gb():
    settings = load_config(EXAMPLES / "gsm8k.toml", ["--model.source", "Qwen/Qwen3-4B"])
    found = estimated(shape_of(qwen3("Qwen/Qwen3-4B")), settings, prompt=400, device="cuda")
    with pytest.raises(ConfigError, match=r"needs about .* \[lora\]"):
        found.check(80 * 10**9, "this GPU")


def test_nothing_is_allocated(shape):
    from allocations import peak_bytes

    assert peak_bytes(lambda: shape_of(qwen3("Qwen/Qwen3-0.6B"))) < 10**6
    assert torch.get_default_device() == torch.device("cpu")

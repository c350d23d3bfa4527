"""GPUs that are missing, several, old or idle, on a machine that pretends to have them."""

import pytest
import torch

from holdfast.errors import ConfigError
from holdfast.train.settings.config import ModelConfig
from holdfast.train.settings.configfile import build_config
from holdfast.train.settings.device import (
    Machine,
    check_attention,
    check_device,
    claim_local_gpu,
    device_notes,
    device_of,
    engine_device,
    refuse_several_processes,
)


def test_a_gpu_that_is_missing(fake_gpu):
    fake_gpu(0)
    with pytest.raises(ConfigError, match=r'model.device = "cuda": torch sees no GPU.*nearest valid value: "auto"'):
        check_device(build_config({"model": {"device": "cuda"}}))
    with pytest.raises(ConfigError, match=r'async.device = "cuda:1": torch sees no GPU'):
        check_device(build_config({"async": {"device": "cuda:1", "staleness": 1}}))
    check_device(build_config({}))


def test_the_engines_process_has_a_device(fake_gpu):
    fake_gpu(2)
    ahead = {"staleness": 1}
    assert engine_device(build_config({"async": ahead})).type == "cuda"
    assert engine_device(build_config({"async": ahead, "model": {"device": "cpu"}})).type == "cpu"
    assert engine_device(build_config({"async": ahead | {"device": "cpu"}})).type == "cpu"
    assert engine_device(build_config({"async": ahead | {"device": "cuda:1"}})) == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r'async.device = "cuda:2": torch sees 2 GPUs, cuda:0 to cuda:1'):
        check_device(build_config({"async": ahead | {"device": "cuda:2"}}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": {"autocast": True}}, "model.autocast = true: the Testcard has no bfloat16.*valid value: false"),
        (
            {"model": {"dtype": "bfloat16"}, "optimizer": {"learning_rate": 1e-3}},
            'model.dtype = "bfloat16": the Testcard.*valid value: "float32"',
        ),
        ({"engine": {"precision": "bfloat16"}}, 'engine.precision = "bfloat16": the Testcard.*"float32"'),
    ],
)
def test_a_card_without_bfloat16(values, words, fake_gpu):
    """torch emulates it there, and is_bf16_supported() says yes if asked without care."""
    fake_gpu(1, bfloat16=False, capability=(7, 5))
    with pytest.raises(ConfigError, match=words):
        check_device(build_config(values))
    values = {key: value | ({"device": "cpu"} if key == "model" else {}) for key, value in values.items()}
    check_device(build_config({"model": {"device": "cpu"}} | values))
    fake_gpu(1)
    check_device(build_config(values))


def test_a_card_without_bfloat16_gets_defaults_that_it_can_run(fake_gpu):
    fake_gpu(1, bfloat16=False, capability=(7, 0))
    check_device(build_config({"model": {"source": "owner/model"}}))


def test_fp8_products_that_the_card_lacks(fake_gpu):
    values = {"engine": {"kind": "vllm", "precision": "float16", "options": {"quantization": "fp8"}}}
    fake_gpu(1, capability=(8, 6))
    with pytest.raises(ConfigError, match=r"quantization = \"fp8\": the Testcard \(compute capability 8\.6\)"):
        check_device(build_config(values))
    fake_gpu(1, capability=(8, 9))
    check_device(build_config(values))


def test_machine(fake_gpu, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    fake_gpu(0)
    assert Machine.here(ModelConfig()) == Machine(False, True)
    fake_gpu(1, bfloat16=False)
    assert Machine.here(ModelConfig()) == Machine(True, False, 6)
    assert Machine.here(ModelConfig(device="cpu")) == Machine(False, True)
    assert device_of(ModelConfig()).type == "cuda"


@pytest.mark.parametrize(
    ("settings", "gpus", "words"),
    [
        ({"attention": "flash_attention_2"}, 0, r'"flash_attention_2" needs a GPU.*nearest valid value: "sdpa"'),
        ({"attention": "flex_attention"}, 0, r'"flex_attention" needs a GPU'),
        ({"attention": "flash_attention_2"}, 1, r"needs the package flash-attn, which is not installed"),
        ({"attention": "flash_attention_3"}, 1, r"needs the package flash-attn-3"),
    ],
)
def test_attention_that_cannot_run_here(settings, gpus, words, fake_gpu, monkeypatch):
    for number in (2, 3):
        name = f"transformers.utils.import_utils.is_flash_attn_{number}_available"
        monkeypatch.setattr(name, lambda: False)
    fake_gpu(gpus)
    with pytest.raises(ConfigError, match=words):
        check_attention(ModelConfig(**settings))


def test_flash_attention_computes_in_16_bits(fake_gpu, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    fake_gpu(1)
    with pytest.raises(ConfigError, match=r"computes in 16 bits: set model.autocast = true"):
        check_attention(ModelConfig(attention="flash_attention_2"))
    check_attention(ModelConfig(attention="flash_attention_2", autocast=True))
    check_attention(ModelConfig(attention="flash_attention_2", dtype="bfloat16"))
    check_attention(ModelConfig(attention="flex_attention"))
    for name in ("auto", "sdpa", "eager"):
        check_attention(ModelConfig(attention=name))


def test_several_processes_get_the_commands_that_use_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError) as caught:
        refuse_several_processes("my.toml")
    message = str(caught.value)
    assert "WORLD_SIZE = 8" in message
    assert "  holdfast launch my.toml --backend verl --run-dir " in message
    assert "  accelerate launch --num_processes 8 -m holdfast launch my.toml --backend trl --run-dir " in message
    for world in ("1", ""):
        monkeypatch.setenv("WORLD_SIZE", world)
        refuse_several_processes()
    monkeypatch.delenv("WORLD_SIZE")
    refuse_several_processes()


def test_each_process_takes_its_own_gpu(fake_gpu, monkeypatch):
    chosen = fake_gpu(2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    claim_local_gpu()
    assert chosen == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    claim_local_gpu()
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"LOCAL_RANK = 2, but torch sees 2 GPUs.*--num_processes 2"):
        claim_local_gpu()
    fake_gpu(0)
    claim_local_gpu()


def test_idle_gpus_and_idle_tensor_cores_are_said_at_the_start(fake_gpu):
    fake_gpu(8)
    fast = {"model": {"autocast": True}}
    (idle,) = device_notes(build_config(fast))
    assert idle.startswith("8 GPUs are visible and this run uses 1")
    two = fast | {"async": {"staleness": 1, "device": "cuda:1"}}
    assert next(device_notes(build_config(two))).startswith("8 GPUs are visible and this run uses 2")
    fake_gpu(1)
    assert list(device_notes(build_config(fast))) == []
    (slow,) = device_notes(build_config({}))
    assert "model.autocast = true" in slow and "TF32" in slow
    fake_gpu(1, bfloat16=False)
    assert list(device_notes(build_config({}))) == []
    fake_gpu(0)
    assert list(device_notes(build_config({}))) == []

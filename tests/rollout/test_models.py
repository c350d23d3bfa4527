import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.errors import ConfigError
from holdfast.rollout.models import character_tokenizer, load_model, tiny_model, token_texts


def test_characters_are_tokens_and_come_back(tmp_path):
    tokenizer = character_tokenizer("ba=\n#é a")
    ids = tokenizer.encode("a b=é\n#")
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 8
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a b=é\n#"
    assert tokenizer.encode("ab", add_special_tokens=False) == ids[1:2] + ids[3:4]
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert len(tokenizer) == 4 + 7


def test_a_tiny_model_comes_from_its_seed_alone():
    tokenizer = character_tokenizer("0123456789")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (tiny_model(tokenizer, hidden=32, layers=1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_folder_loads_as_it_was_saved(tmp_path):
    tokenizer = character_tokenizer("abc")
    model = tiny_model(tokenizer, hidden=32, layers=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, characters = load_model(str(tmp_path), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert characters.encode("cab") == tokenizer.encode("cab")
    assert (characters.pad_token_id, characters.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    tiny_model(character_tokenizer("abc"), hidden=32, layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer that loads: save one beside the model"):
        load_model(str(tmp_path), torch.float32)


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such folder, and a hub name looks like 'owner/name'"):
        load_model(str(tmp_path / "nowhere"), torch.float32)
    with pytest.raises(ConfigError, match=r"model\.source = 'nobody/nothing' could not be loaded"):
        load_model("nobody/nothing", torch.float32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        load_model(str(tmp_path / "empty"), torch.float32)


def test_ids_that_the_tokenizer_does_not_know_have_a_text():
    """Models round their vocabulary up: Qwen3 has 151936 logits and 151669 tokens."""
    tokenizer = character_tokenizer("ab")
    assert token_texts(tokenizer, (*tokenizer.encode("ab"), len(tokenizer) + 3)) == ("<bos>", "a", "b", "<9>")


@pytest.fixture
def saved(tmp_path):
    """A model folder, and a function that changes its weights."""
    tokenizer = character_tokenizer("abc")
    tiny_model(tokenizer, hidden=32, layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def change(edit):
        path = tmp_path / "model.safetensors"
        weights = load_file(path)
        edit(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return tmp_path, change


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(UP), rf"lacks weights of a Qwen3ForCausalLM \({UP}\), which would be random"),
        (
            lambda weights: weights.update({f"v_head.{k}": torch.zeros(1) for k in range(5)}),
            r"does not have \(v_head\.0, v_head\.1, v_head\.2, and 2 more\), which would be dropped",
        ),
        (lambda weights: weights[UP].view(-1)[7].fill_(float("nan")), rf"NaN or infinite \({UP}\): take an earlier"),
        (lambda weights: weights[UP].view(-1)[7].fill_(float("inf")), rf"NaN or infinite \({UP}\): take an earlier"),
        (lambda weights: weights.update({UP: torch.zeros(3, 32)}), r"could not be loaded as a causal model"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(saved, edit, message):
    folder, change = saved
    assert load_model(str(folder), torch.float32)
    change(edit)
    with pytest.raises(ConfigError, match=message):
        load_model(str(folder), torch.float32)


def test_a_configuration_with_more_layers_than_weights_is_refused(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"lacks weights .*and 8 more\).* or correct config\.json"):
        load_model(str(folder), torch.float32)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(saved):
    folder, _ = saved
    larger = character_tokenizer("abcdef")
    larger.save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"tokenizer has 10 tokens and the model's vocabulary 7.*resize_token_embeddings\(10\)"
    ):
        load_model(str(folder), torch.float32)

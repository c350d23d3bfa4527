"""What a run will need of memory, from its settings and the shapes of its model: nothing is loaded for it.

Memory is the largest of a few stages, in each of which some parts are there at the same time: while responses are
written there is a cache and no activation, during an update the other way round. Bytes are those that the code holds;
docs/memory.md compares them with what runs took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.errors import ConfigError
from holdfast.objectives.objective import Objective
from holdfast.rollout.embedded.cache import block_rows
from holdfast.rollout.embedded.quantize import multiplies_bfloat16
from holdfast.rollout.models import cache_bytes, character_tokenizer, tiny_config
from holdfast.rollout.outside.vllm import GIB, OVERHEAD
from holdfast.rollout.pretrained import model_folder
from holdfast.train.policy.unpadded import VARLEN, sharing_pays
from holdfast.train.sampling.engines import sleeps
from holdfast.train.sampling.sampler import decide_exact_kl, wants_distributions
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.defaults import distribution_bytes

DRAWS = 5
"""Tables of [rows, V] in float32 that are there while tokens are drawn: logits, logarithms, probabilities, sums."""
WHOLE_LOGITS = 6
"""The same for log-probabilities from whole logits, with their gradient."""
FREED = 0.1
"""On a CPU freed memory stays with the process and is not all used again: 3 to 22 % in the runs of docs/memory.md."""

SETTINGS = {
    "trainer weights": 'a smaller model, or [lora] with model.dtype = "bfloat16"',
    "reference policy": "an objective without a reference, or [lora], whose reference is no copy",
    "gradients": "[lora] rank = 16, which trains few weights",
    "optimiser state": "[lora] rank = 16, which trains few weights",
    "copy for the brake": 'guard.brake = "off", or [lora], which trains few weights',
    "activations": "model.gradient_checkpointing = true, or a lower batch.micro_batch_tokens",
    "LM head": "a lower batch.micro_batch_tokens, or [lora], which leaves the head as it is",
    "engine weights": 'engine.precision = "bfloat16", or a lower engine.lag',
    "engine cache": "a lower engine.cache_gib",
    "drawing tokens": "a lower engine.cache_gib, or fewer responses a step",
    "whole distributions": "engine.exact_kl = false with engine.top_logprobs = 20",
    "evaluation": "a lower evaluation.cache_gib",
}
"""What makes a part smaller."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal language model; `parameters` count tied weights once, `linear` those in layers' products.

    `head` is vocabulary · hidden, `ins` and `outs` the inputs and outputs of all linear layers but the head, for
    adapters; `wide` the width of the gated layer, all chosen experts together.
    """

    parameters: int
    linear: int
    ins_and_outs: int
    layers: int
    hidden: int
    wide: int
    queries: int
    keys: int
    normed: bool
    vocabulary: int
    tied: bool
    cached: int
    name: str = ""

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.vocabulary * self.hidden


def shape_of(config: Any) -> Shape:
    """Counted on torch's device without memory, from a Hugging Face configuration."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = model.get_output_embeddings()
    layers = [x for x in model.modules() if isinstance(x, torch.nn.Linear) and x is not head]
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        wide = experts * (getattr(text, "moe_intermediate_size", None) or wide)
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear=sum(layer.weight.numel() for layer in layers),
        ins_and_outs=sum(layer.in_features + layer.out_features for layer in layers),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        wide=wide,
        queries=heads * width,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * width,
        normed=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        vocabulary=head.weight.shape[0],
        tied=head.weight is model.get_input_embeddings().weight,
        cached=cache_bytes(config, torch.float32) // 4,
        name=type(model).__name__,
    )


def shape_of_run(config: RunConfig, alphabet: str) -> Shape:
    """Of the model that the configuration names.

    Raises:
        OSError, ValueError: its config.json cannot be had.
    """
    from transformers import AutoConfig

    settings = config.model
    if settings.source is not None:
        return shape_of(AutoConfig.from_pretrained(model_folder(settings.source)))
    sizes = {"hidden": settings.hidden, "layers": settings.layers, "heads": settings.heads}
    return shape_of(tiny_config(character_tokenizer(alphabet), **sizes))


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, which parts are there at the same time, and the share that is freed but not given back."""

    parts: Mapping[str, int]
    stages: Mapping[str, tuple[str, ...]]
    freed: float = 0.0

    def at(self, stage: str) -> int:
        """Bytes at this stage."""
        return round(sum(self.parts[name] for name in self.stages[stage]) * (1 + self.freed))

    @property
    def peak(self) -> str:
        """The stage that takes most."""
        return max(self.stages, key=self.at)

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.at(self.peak)

    @property
    def largest(self) -> str:
        """The largest part at the peak."""
        return max(self.stages[self.peak], key=lambda name: self.parts[name])

    def check(self, free: int | None, where: str) -> None:
        """Nothing where it fits, or where it is not known how much is free.

        Raises:
            ConfigError: it does not; the message names the largest parts and the settings that change them.
        """
        if free is None or self.total <= free:
            return
        ordered = sorted(self.stages[self.peak], key=lambda name: -self.parts[name])[:3]
        advice = "; ".join(f"{name} {self.parts[name] / 1e9:.2f} GB ({SETTINGS[name]})" for name in ordered)
        raise ConfigError(
            f"the run needs about {self.total / 1e9:.2f} GB of memory in its largest stage ({self.peak}), and "
            f"{free / 1e9:.2f} GB are free on {where}. What takes most, and what makes it smaller: {advice}. To start "
            "it all the same: model.memory_check = false"
        )


@dataclass(frozen=True)
class _Sizes:
    """What the parts are computed from: `narrow` bytes of a product's inputs, `kept` bytes of a weight."""

    config: RunConfig
    shape: Shape
    prompt: int
    whole: bool
    cpu: bool

    @property
    def kept(self) -> int:
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def narrow(self) -> int:
        return 2 if self.config.model.autocast else self.kept

    @property
    def length(self) -> int:
        return self.prompt + self.config.sampling.max_tokens

    @property
    def micro_rows(self) -> int:
        """Responses of a micro-batch, all of full length."""
        batch = self.config.batch
        return min(batch.sequences, max(1, batch.micro_batch_tokens // self.length))

    @property
    def tokens(self) -> int:
        """Of a micro-batch; a group's prompt counts once where it is computed once."""
        config, rows = self.config, self.micro_rows
        prompts = -(-rows // config.batch.group_size)
        saved = (rows - prompts) * self.prompt
        sizes = {"prompts": prompts, "rows": rows, "prompt": self.prompt, "longest": self.length}
        pays = sharing_pays(self.shape.hidden, saved, **sizes, answer=config.sampling.max_tokens, cpu=self.cpu)
        shared = config.model.unpadded and config.model.attention not in VARLEN and pays
        return rows * self.length - saved * shared

    @property
    def trained(self) -> int:
        rank = self.config.lora.rank
        return rank * self.shape.ins_and_outs if rank else self.shape.parameters


def estimate(config: RunConfig, shape: Shape, objective: Objective, *, prompt_tokens: int, device: str) -> Estimate:
    """Bytes that the trainer's process holds on `device` at its worst, with the engine where it shares the device.

    Every response is taken to be `sampling.max_tokens` long and every prompt `prompt_tokens`, so a run whose
    responses are shorter takes less.

    Raises:
        ConfigError: whole distributions are needed and are larger than this machine's memory.
    """
    config, _ = decide_exact_kl(config, objective, shape.vocabulary)
    distributions = distribution_bytes(config, shape.vocabulary)
    sizes = _Sizes(config, shape, prompt_tokens, wants_distributions(config, objective), device == "cpu")
    eight_bit = config.optimizer.kind == "adamw8bit"
    trained = sizes.trained
    adapters = trained * (4 - sizes.kept) if config.lora.rank else 0  # PEFT keeps them in float32
    reference = "ref_logprobs" in objective.needs and not config.lora.rank
    parts = {
        "trainer weights": shape.parameters * sizes.kept + (trained * sizes.kept + adapters if config.lora.rank else 0),
        "reference policy": shape.parameters * sizes.kept if reference else 0,
        "gradients": trained * sizes.kept + adapters,
        "optimiser state": trained * 2 if eight_bit else 2 * (trained * sizes.kept + adapters),
        "activations": activations(sizes),
        "LM head": lm_head(sizes),
        "whole distributions": distributions if sizes.whole else 0,
    }
    brake = config.guard.brake != "off"
    parts["copy for the brake"] = (trained * sizes.kept + adapters + parts["optimiser state"]) if brake else 0
    parts |= _engine(sizes) | {"evaluation": _evaluation(sizes)}
    return Estimate(parts, _stages(config), FREED if device == "cpu" else 0.0)


def _stages(config: RunConfig) -> dict[str, tuple[str, ...]]:
    base = ("trainer weights", "reference policy", "gradients", "optimiser state")
    engine = ("engine weights", "engine cache")
    outside = config.engine.kind == "vllm"  # its cache is taken at the start and stays, unless it sleeps
    stays = engine if outside else ("engine weights",)
    asleep = outside and sleeps(config)
    return {
        "writing responses": (*base, *engine, "drawing tokens", "whole distributions"),
        "updating": (
            *base,
            *(() if asleep else stays),
            "whole distributions",
            "copy for the brake",
            "activations",
            "LM head",
        ),
        "evaluating": (*base, *stays, "copy for the brake", "evaluation"),
    }


def activations(sizes: _Sizes) -> int:
    """What the backward pass needs of a micro-batch, and the gradients of one layer.

    Per token and layer: two norms keep their input in float32, what they normalised and what they gave; attention
    keeps queries, keys and values (repeated for every head), what it gave, and that again for the product after it;
    norms of heads keep what they normalised, twice; the gated layer its two halves, their activation and product. With
    gradient_checkpointing one layer has all that, the others their input alone.
    """
    config, shape, narrow = sizes.config, sizes.shape, sizes.narrow
    tokens = sizes.tokens
    wide = 4 if sizes.cpu else narrow  # attention on a CPU computes in float32
    layer = 2 * shape.hidden * (4 + sizes.kept)
    layer += shape.hidden * narrow * (5 if config.model.autocast else 2)  # a narrow copy for each of five products
    layer += 4 * shape.queries * wide + shape.queries * narrow
    layer += (shape.queries + shape.keys) * (4 + narrow) if shape.normed else 0
    layer += 4 * shape.wide * narrow
    backward = 3 * shape.wide * narrow
    copies = 0
    if config.model.autocast:  # a narrow copy of each weight, for as long as the forward pass
        one_layer = config.model.gradient_checkpointing and config.lora.rank
        copies = 2 * shape.linear // (shape.layers if one_layer else 1)
    if config.model.gradient_checkpointing:
        return tokens * (layer + backward + shape.layers * shape.hidden * sizes.kept) + copies
    return tokens * (shape.layers * layer + backward) + copies


def lm_head(sizes: _Sizes) -> int:
    """Hidden states, then what an engine reported of them, or the gradients of states and of the head's weight.

    States are there as they come out of the model and as the head reads them, and twice as gradients; under autocast
    the weight is there in bfloat16 too. Where the engine's support cuts tokens off, whole logits are made.
    """
    config, shape = sizes.config, sizes.shape
    rows = sizes.micro_rows * config.sampling.max_tokens
    states = 2 * rows * shape.hidden * 4
    gradients = states + (0 if config.lora.rank else shape.head * (6 if config.model.autocast else 4))
    reports = rows * shape.vocabulary * 4 if sizes.whole else 0  # gone before gradients come
    found = states + max(gradients, reports) + (2 * shape.head if config.model.autocast else 0)
    truncated = config.sampling.truncates and config.sampling.trainer_support == "processed"
    if truncated or shape.vocabulary <= 256:  # so few are not worth tiles
        found += WHOLE_LOGITS * rows * shape.vocabulary * 4
    return found


def _engine(sizes: _Sizes) -> dict[str, int]:
    config, shape = sizes.config, sizes.shape
    engine, batch = config.engine, config.batch
    own: dict[str, int] = {"engine weights": 0, "engine cache": 0, "drawing tokens": 0}
    if engine.kind == "server":
        return own
    size = 2 if engine.precision in ("bfloat16", "float16") else 4
    if engine.kind == "vllm":
        room = int(engine.cache_gib * GIB)
        copies = 1 + shape.tied * shape.head / shape.parameters
        return own | {
            "engine weights": int(shape.parameters * size * copies) + (0 if sizes.cpu else OVERHEAD),
            "engine cache": room,
        }
    held = size if multiplies_bfloat16(torch.device("cpu" if sizes.cpu else "cuda")) else 4
    queued = shape.parameters * min(size, sizes.kept)
    process = shape.parameters * 4 if config.asynchronous.staleness else 0  # the model that takes the weights over
    rows = block_rows(batch.sequences, sizes.length * shape.cached * size, engine.cache_gib) or 1
    prompts = -(-rows // batch.group_size)
    cache = (rows * config.sampling.max_tokens + prompts * sizes.prompt) * shape.cached * size
    growth = 2 * rows * config.sampling.max_tokens * shape.cached * 4 // shape.layers  # one layer, again or in float32
    reading = prompts * sizes.prompt * (3 * shape.wide + 2 * shape.queries + 4 * shape.hidden) * 4
    draws = DRAWS * rows * shape.vocabulary * 4
    if sizes.whole:  # position by position, before they are put into one table
        draws += rows * config.sampling.max_tokens * shape.vocabulary * 4
    return own | {
        "engine weights": (engine.lag + 1) * queued + (shape.linear + shape.head) * held + process,
        "engine cache": cache + growth,
        "drawing tokens": max(draws, reading),
    }


def _evaluation(sizes: _Sizes) -> int:
    """Keys and values of a block of held-out problems, one layer of them again, and what drawing or reading takes."""
    config, shape = sizes.config, sizes.shape
    if config.engine.kind != "embedded" and not config.asynchronous.staleness:
        return 0  # on the run's own engine
    judged = config.held_out * config.batch.group_size if config.guard.brake == "certificate" else 0  # new answers
    most = max(config.evaluation.problems * config.evaluation.samples, judged)
    token = shape.cached * sizes.kept
    rows = block_rows(most, sizes.length * token, config.evaluation.cache_gib) or 1
    cache = rows * sizes.length * token
    again = cache // shape.layers * (1 + (shape.queries // shape.keys if shape.queries > shape.keys else 0))
    reading = rows * sizes.prompt * (3 * shape.wide + 2 * shape.queries + 4 * shape.hidden) * sizes.kept
    return cache + again + max(DRAWS * rows * shape.vocabulary * 4, reading)

"""The memory estimate against what runs take on a CPU: `python benchmarks/memory.py [NAME ...]`.

Each run is a process of its own: random weights of a model's shape, one or two steps, rewards right and wrong by
turns (equal ones would skip the backward pass). Measured is the peak of resident memory over what the process held
after its imports, so what C libraries set up later counts against the estimate.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
MODELS = {
    "30m": ("Qwen3", {"hidden_size": 384, "num_hidden_layers": 8, "intermediate_size": 1152, "vocab_size": 32_000,
                      "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}),
    "135m": ("Llama", {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49_152,
                       "num_attention_heads": 9, "num_key_value_heads": 3}),
    "300m": ("Qwen3", {"hidden_size": 1024, "num_hidden_layers": 16, "intermediate_size": 3072, "vocab_size": 65_536,
                       "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}),
}  # fmt: skip
BATCHES = {
    "30m": [
        *("--batch.prompts", "4", "--batch.group_size", "4", "--sampling.max_tokens", "64"),
        *("--engine.exact_kl", "true"),
    ],
    "135m": ["--batch.prompts", "2", "--batch.group_size", "4", "--sampling.max_tokens", "32"],
    "300m": ["--batch.prompts", "2", "--batch.group_size", "2", "--sampling.max_tokens", "16"],
    "300m, recomputed": [
        *("--batch.prompts", "2", "--batch.group_size", "2", "--sampling.max_tokens", "16"),
        *("--model.gradient_checkpointing", "true", "--engine.precision", "bfloat16"),
    ],
    "135m, adapters": [
        *("--batch.prompts", "2", "--batch.group_size", "4", "--sampling.max_tokens", "32"),
        *("--lora.rank", "16", "--engine.precision", "bfloat16"),
    ],
}  # fmt: skip
RUN = """
[task]
name = "sorting"
reward = "memory:coin"
[model]
source = "{folder}"
device = "cpu"
[engine]
precision = "int8"
exact_kl = false
[optimizer]
learning_rate = 1e-5
[evaluation]
problems = 4
greedy = false
[checkpoint]
every = 0
"""


def coin(problem: object, response: str, turn: Iterator[int] = itertools.count()) -> float:  # noqa: B008
    """Right and wrong by turns; texts say nothing, for most tokens of such a model have none."""
    return float(next(turn) % 2)


def make(name: str, folder: Path) -> None:
    """A model folder with random weights."""
    import torch
    import transformers

    from holdfast.rollout.models import character_tokenizer
    from holdfast.tasks import get_task

    kind, sizes = MODELS[name]
    tokenizer = character_tokenizer(get_task("sorting").alphabet)
    ids = {f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{kind}Config")(**sizes, **ids, tie_word_embeddings=True)
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resident_peak() -> int:
    """Bytes; not ru_maxrss, in which Linux hands the peak of the process that started this one down."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def run(home: Path, overrides: list[str], steps: int) -> None:
    """One run in this process; prints the peak and the estimate."""
    import peft  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from holdfast.rollout.embedded.fused import FusedDecoder  # noqa: F401
    from holdfast.tasks import get_task
    from holdfast.train.estimate import estimate, shape_of_run
    from holdfast.train.keep.folder import RunFolder
    from holdfast.train.loop import train
    from holdfast.train.settings.configfile import load_config
    from holdfast.train.settings.objective import objective_of
    from holdfast.train.show.display import Quiet

    config = load_config(home / "run.toml", [*overrides, "--steps", str(steps)])
    task = get_task(config.task.name)
    shape = shape_of_run(config, task.alphabet)
    prompt = len(task.problems(0, 1, "train")[0].prompt) + 1  # a token a character
    found = estimate(config, shape, objective_of(config), prompt_tokens=prompt, device="cpu")
    stages = {stage: round(found.at(stage) / 1e9, 3) for stage in found.stages}
    parts = {name: round(size / 1e9, 3) for name, size in found.parts.items()}
    baseline = resident_peak()
    train(config, RunFolder.create(home / "run", config), display=Quiet())
    peak = resident_peak() - baseline
    print(json.dumps({"parameters": shape.parameters, "estimate": found.total, "peak": peak, "baseline": baseline,
                      "ratio": round(found.total / peak, 3), "stages": stages, "parts": parts}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BATCHES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run(options.inside, BATCHES[options.names[0]], options.steps)
        return
    for name in options.names:
        with tempfile.TemporaryDirectory() as home:
            make(name.partition(",")[0], Path(home) / "model")
            (Path(home) / "run.toml").write_text(RUN.format(folder=Path(home) / "model"))
            paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
            command = [sys.executable, __file__, name, "--inside", home, "--steps", str(options.steps)]
            environment = os.environ | {"PYTHONPATH": paths}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            print(name, done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stdout, flush=True)


if __name__ == "__main__":
    main()

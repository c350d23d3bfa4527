"""`holdfast init --model M --data FILE`: a commented run file to start from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError
from holdfast.tasks import get_task
from holdfast.tasks.guess import guess_task, is_chat
from holdfast.tasks.records import Records

TEXT = """\
# Written by `holdfast init`. Every key: docs/trainer.md. Any of them on the command line: --batch.prompts 4
#     holdfast check {name}      # data, prompts as the model sees them, reward, memory; seconds, nothing is left behind
#     holdfast train {name}
steps = {steps}

[task]
{task}# reward = "rewards.py:right"    # your own function instead, or several with weights: docs/tasks.md

[model]
source = {model}{chat}

[sampling]
max_tokens = {max_tokens}               # the longest response; the run says how many were cut off

[objective]
preset = "{preset}"           # {meaning}; all: holdfast presets

[batch]
prompts = {prompts}                  # problems a step
group_size = 8               # responses to each
# micro_batch_tokens = 4096  # lower it where memory is short; no gradient changes

[evaluation]
every = 10
problems = {held_out}                # those held out; a tenth of the rows without task.eval_path

[log]
rollouts_every = 1           # every token's log-probabilities, for `holdfast audit`
"""
PRESET, MEANING = "trm+dapo", "trust region masking and DAPO's clip"
CHAT = "\nchat = true                  # prompts go through the tokenizer's chat template"
VERIFIERS = {
    "numeric": "the last number of the response against the answer's",
    "exact": "the whole response must be the answer; with `marker` only what follows it",
}


def run(argv: list[str]) -> int:
    """Look at the data and the tokenizer, and write the file."""
    options = parser().parse_args(argv)
    if options.out.exists():
        raise ConfigError(f"{options.out} exists: name another with --out")
    if options.steps < 1:
        raise ConfigError(f"--steps {options.steps}: at least 1")
    for name, file in (("--data", options.data), ("--eval-data", options.eval_data)):
        if file is not None and not file.is_file():
            raise ConfigError(f"{name} {file}: there is no such file (working folder: {Path.cwd()})")
    task = guess_task(options.data)
    task |= {} if options.eval_data is None else {"eval_path": str(options.eval_data)}
    chat, context = facts_of(options.model)
    if is_chat(options.data, task) and not chat:
        raise ConfigError(
            f"the prompts of {options.data} are chat messages, and the tokenizer of {options.model!r} has no chat "
            "template: take an instruction-tuned model"
        )
    table = get_task(**task)
    assert isinstance(table, Records)
    trained, held_out = table.pool("train"), table.pool("eval")
    if not trained or not held_out:
        raise ConfigError(f"{options.data} has too few rows to hold a tenth of them out: add rows, or give --eval-data")
    text = TEXT.format(
        name=options.out,
        steps=options.steps,
        task=_table(task),
        model=_quoted(options.model),
        chat=CHAT if chat else "",
        max_tokens=min(512, context // 2),
        preset=PRESET,
        meaning=MEANING,
        prompts=min(8, len(trained)),
        held_out=min(64, len(held_out)),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}; next: holdfast check {options.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="holdfast init",
        description="Write a commented run file for a model and a table of prompts and answers.",
        allow_abbrev=False,
    )
    made.add_argument("--model", required=True, help='folder, hub name, GGUF file or "smollm2"')
    made.add_argument("--data", required=True, type=Path, help="JSON Lines, CSV, parquet: a prompt and answer a row")
    made.add_argument("--eval-data", type=Path, help="held-out rows (without it a tenth of --data, by a checksum)")
    made.add_argument("--out", type=Path, default=Path("run.toml"), help="file to write (run.toml)")
    made.add_argument("--steps", type=int, default=50, help="steps to train (50)")
    return made


def facts_of(source: str) -> tuple[bool, int]:
    """Whether the model's tokenizer has a chat template, and the longest text in tokens.

    Raises:
        ConfigError: no such model, or its config.json or tokenizer cannot be read.
    """
    from transformers import AutoConfig

    from holdfast.rollout.models import load_tokenizer, place_of
    from holdfast.train.keep.checkpoint import no_progress_bar

    place = place_of(source)
    with no_progress_bar():
        try:
            config = AutoConfig.from_pretrained(place).get_text_config()
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"config.json of {source!r} cannot be read: {str(error).splitlines()[0]}") from error
    tokenizer = load_tokenizer(source, config.vocab_size)
    return bool(tokenizer.chat_template), getattr(config, "max_position_embeddings", None) or 1 << 20


def _table(task: Mapping[str, Any]) -> str:
    lines = []
    for key, value in task.items():
        said = f"     # {VERIFIERS[value]}" if key == "verifier" else ""
        lines.append(f"{key} = {_quoted(str(value))}{said}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    """A TOML string."""
    import tomli_w

    return tomli_w.dumps({"x": text}).strip().removeprefix("x = ")

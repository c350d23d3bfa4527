"""A plain installation: what needs no extra works, and what needs one names it."""

import re
import subprocess
import sys

import pytest

from holdfast.cli import usage

PACKAGES = ("transformers", "tokenizers", "safetensors", "tqdm", "peft")
PLAIN = (
    f"import sys; sys.modules.update(dict.fromkeys({PACKAGES}));"
    "from holdfast.cli import dispatch; sys.exit(dispatch(sys.argv[1:]))"
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PLAIN, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [("--help",), ("bounds", "--horizon", "64", "--kl", "1e-4"), ("presets", "trm")])
def test_commands_without_a_model_need_no_extra(arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr


def test_advice_on_a_file_needs_no_extra():
    done = run("advise", "examples/ledger_ppo.toml")
    assert done.returncode in (0, 1) and done.stdout.startswith("examples/ledger_ppo.toml: ppo;"), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("demo",), ("train", "examples/small/lora.toml"), ("launch", "examples/launch/shared.toml", "--backend", "trl")],
)
def test_a_missing_extra_is_a_sentence_with_the_fix(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    sentence = rf"holdfast {arguments[0]}: this needs the package (\w+), which is not installed: (.*)\n"
    found = re.fullmatch(sentence, done.stderr)
    assert found and found[1] in PACKAGES and found[2] == "pip install 'holdfast-rl[train]'", done.stderr


def test_help_fits_a_terminal():
    assert max(map(len, usage().splitlines())) <= 80

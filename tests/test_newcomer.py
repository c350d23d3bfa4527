"""The newcomer's script sees every quick start of the README, and says of each line whether it runs it."""

import tomllib

from holdfast.train.settings.config import CheckpointConfig
from newcomer import ROOT, ended_well, lines_of, quick_starts, why_not

STARTS = quick_starts((ROOT / "README.md").read_text(encoding="utf-8"))


def lines():
    return [line for _, blocks in STARTS for language, block in blocks for line in lines_of(language, block)]


def test_every_quick_start_is_played():
    headings = [heading for heading, _ in STARTS]
    assert [h.startswith("Quick start") for h in headings] == [True, True, True, False] and "The library" in headings
    assert all(blocks for _, blocks in STARTS)


def test_what_is_run_and_what_is_not():
    run = [line for line in lines() if why_not(line) is None]
    for wanted in ("holdfast train examples", "holdfast init", "holdfast check", "holdfast audit runs", "import torch"):
        assert any(line.startswith(wanted) for line in run), wanted
    assert len(run) > len(lines()) / 2
    assert why_not('args=GRPOConfig(use_vllm=True), model="Qwen/Qwen3-0.6B"').startswith("downloads a model")
    assert why_not("holdfast audit huge_log --workers 8") and why_not('model="Qwen/Qwen3-0.6B"')


def test_the_second_run_continues_with_what_the_first_left():
    config = tomllib.loads((ROOT / "examples" / "small" / "gsm8k.toml").read_text(encoding="utf-8"))
    halfway = config["steps"] // 2
    assert halfway == CheckpointConfig().every == 20
    command = next(line.split() for line in lines() if line.startswith("holdfast init"))
    assert command[command.index("--model") + 1] == f"runs/gsm8k/checkpoints/step_{halfway:04d}/model"
    assert (ROOT / command[command.index("--data") + 1]).is_file()


def test_findings_are_no_failure_and_errors_are():
    assert ended_well("holdfast audit runs/x", 1) and not ended_well("holdfast audit runs/x", 2)
    assert ended_well("holdfast train a.toml", 0) and not ended_well("holdfast train a.toml", 1)

"""The Python of README and docs/trl.md runs as it stands, with a small model in the place of the one it names."""

import re
from pathlib import Path

import pytest

from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/trl.md"])
def test_blocks_of_the_docs_run(page, tmp_path, monkeypatch):
    runs.model().save_pretrained(tmp_path / "model")
    runs.TOKENIZER.save_pretrained(tmp_path / "model")
    text = (ROOT / page).read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "from trl import" in b)
    small = 'output_dir="out", max_steps=1, use_cpu=True, bf16=False, report_to="none", max_completion_length=4'
    for theirs, ours in (
        (r"Qwen/[\w.-]+", str(tmp_path / "model")),
        (r"GRPOConfig\([^)]*\)", f"GRPOConfig({small}, per_device_train_batch_size=8)"),
        (r'"trm\+sspo\+kl_cov"', '"sspo+clip_cov"'),  # without vLLM there is no rollout policy to compare with
        (r"examples/", f"{ROOT}/examples/"),
    ):
        block = re.sub(theirs, ours, block)
    monkeypatch.chdir(tmp_path)
    names = {"reward": runs.small_digits, "dataset": runs.PROMPTS}
    exec(block, names)
    assert names["trainer"].state.global_step == 1

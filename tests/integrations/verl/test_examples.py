"""The shipped scripts compose in verl's real config, are accepted by their level, and hold no trap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "examples" / "verl").glob("*.sh"))


def run(script, folder, **variables):
    environment = {
        **os.environ,
        "RUN": f"{sys.executable} -m holdfast.integrations.verl",
        "PYTHON": sys.executable,
        **variables,
    }
    command = ["bash", script]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_starts_as_it_is(script, tmp_path):
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "L = −Σ_it" in done.stdout


def test_the_smoke_run_takes_a_model_on_a_gpu(tmp_path):
    done = run(SCRIPTS[0], tmp_path, MODEL="Qwen/Qwen3-0.6B")
    assert "L = −Σ_it" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_keeps_what_it_trained_and_needs_no_login(script, tmp_path):
    """Checkpoints, names and absolute folders, whatever the working folder is."""
    recorder = tmp_path / "record.py"
    recorder.write_text("import json, sys; open('words', 'w').write(json.dumps(sys.argv[1:]))")
    (tmp_path / "run").mkdir()
    assert run(script, tmp_path / "run", RUN=f"{sys.executable} {recorder}").returncode == 0
    words = json.loads((tmp_path / "run" / "words").read_text())
    given = dict(word.lstrip("+").split("=", 1) for word in words)
    assert int(given["trainer.save_freq"]) > 0 and "wandb" not in given["trainer.logger"]
    assert given["trainer.project_name"] == "holdfast" and given["trainer.experiment_name"] == script.stem
    folders = [value for key, value in given.items() if key.endswith(("local_dir", "records", "_files"))]
    assert len(folders) >= 3 and all(Path(folder).is_absolute() for folder in folders)


def test_make_refuses_a_python_that_verl_does(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements/test-verl.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    newer = tmp_path / "python3.13"
    newer.write_text("#!/bin/sh\nexit 1\n")
    newer.chmod(0o755)
    command = ["make", ".venv-verl/.installed", f"PYTHON={newer}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (
        done.returncode != 0
        and "verl needs Python 3.11 or 3.12 (its releases say Requires-Python <3.13)" in done.stdout
    )


def test_both_levels_and_a_small_run_have_an_example():
    assert [script.stem for script in SCRIPTS] == ["cpu_smoke", "dapo_one_node", "trm_8x8"]

"""`holdfast launch` as a person meets it: examples that dry-run as they are, files anywhere on the line, exit codes."""

import shlex

import pytest

from holdfast.cli import dispatch
from launch.conftest import EXAMPLES


@pytest.fixture(autouse=True)
def without_verl(monkeypatch):
    """What verl makes of its overrides is the business of test_verl_compose."""
    monkeypatch.setattr("holdfast.launch.verl.find_spec", lambda name: None)


def launch(capsys, *arguments):
    code = dispatch(["launch", *map(str, arguments)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("backend", ["local", "trl", "verl"])
def test_shared_example(backend, folder, capsys):
    code, said = launch(capsys, EXAMPLES / "shared.toml", "--backend", backend, "--dry-run")
    assert code == 0, said.err
    word = {"local": 'precision = "bfloat16"', "trl": "num_generations=8", "verl": "actor_rollout_ref.rollout.n=8"}
    assert word[backend] in said.out
    assert list(folder.iterdir()) == [folder / "examples"]


@pytest.mark.parametrize("backend", ["local", "trl", "verl"])
@pytest.mark.parametrize("example", sorted(path.stem for path in EXAMPLES.glob("*.toml")))
def test_a_fresh_clone_dry_runs_every_example_with_every_backend(example, backend, capsys, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parents[1])
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    code, said = launch(capsys, f"examples/launch/{example}.toml", "--backend", backend, "--dry-run")
    assert code == 0, said.err
    assert "trm+sspo+kl_cov" in said.out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--task.name", "ledgr"], "did you mean ledger"),
        (["--task.path", "missing.jsonl"], "missing.jsonl"),
        (["--objective.preset", "trm+ssspo"], "ssspo"),
        (["--objective.delta", "-1"], "delta = -1"),
    ],
)
def test_a_local_dry_run_checks_what_the_others_check(overrides, words, folder, capsys):
    for backend in ("local", "trl", "verl"):
        code, said = launch(capsys, EXAMPLES / "shared.toml", "--backend", backend, "--dry-run", *overrides)
        assert code == 2 and words in said.err, (backend, said)


def test_single_gpu_example(folder, capsys):
    code, said = launch(capsys, "--backend", "trl", EXAMPLES / "single_gpu.toml", "--dry-run")
    assert code == 0, said.err
    for line in (
        "use_vllm=True",
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=16",
        "steps_per_generation=32",
        "bf16=True",
        "gradient_checkpointing=True",
        "torch_compile=False",
    ):
        assert line in said.out
    assert "trm+sspo+kl_cov:  L = " in said.out


def test_cluster_example_is_one_command(folder, capsys):
    code, said = launch(capsys, "--dry-run", EXAMPLES / "cluster_8x8.toml", "--backend=verl", "--steps", "9")
    assert code == 0, said.err
    command = shlex.split(said.out.partition("\n\n")[0].replace("\\\n", " "))
    assert command[:3] == ["python3", "-m", "verl.trainer.main_ppo"]
    for override in (
        "trainer.nnodes=8",
        "trainer.n_gpus_per_node=8",
        "trainer.total_training_steps=9",
        "trainer.v1.trainer_mode=holdfast_sync",
        "data.train_batch_size=128",
        "actor_rollout_ref.actor.ppo_mini_batch_size=64",
        "data.max_response_length=16384",
        "+actor_rollout_ref.actor.policy_loss.objective=trm+sspo+kl_cov",
    ):
        assert override in command
    assert "verl is not installed here" in said.out


def test_overrides_change_what_is_shown(folder, capsys):
    code, said = launch(
        capsys, "--steps", "7", EXAMPLES / "shared.toml", "--backend", "trl", "--dry-run", "--trl.use_vllm=false"
    )
    assert code == 0 and "max_steps=7" in said.out and "use_vllm=False" in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run.toml"], "--backend None: allowed: local, trl, verl"),
        (["run.toml", "--backend", "trll"], "did you mean trl?"),
        (["--backend", "trl"], "which run? one TOML file"),
        (["a.toml", "b.toml", "--backend", "trl"], "which run? one TOML file"),
        (["missing.toml", "--backend", "trl"], "no configuration file missing.toml"),
    ],
)
def test_messages(arguments, words, folder, capsys):
    code, said = launch(capsys, *arguments)
    assert code == 2
    assert words in said.err and "Traceback" not in said.err


def test_local_run_trains(folder, capsys):
    (folder / "run.toml").write_text(
        'steps = 1\n[task]\nname = "ledger"\nentries = 1\n[model]\nhidden = 32\nlayers = 2\nheads = 2\n'
        "[sampling]\nmax_tokens = 12\n[batch]\nprompts = 2\ngroup_size = 2\n[evaluation]\nproblems = 4\n"
        '[local.engine]\nprecision = "bfloat16"\n[trl]\nuse_vllm = true\n'
    )
    code, said = launch(capsys, "--backend", "local", "run.toml", "--run-dir", "out")
    assert code == 0, said.err
    assert (folder / "out" / "metrics.jsonl").is_file()
    assert 'precision = "bfloat16"' in (folder / "out" / "config.toml").read_text()
    code, said = launch(capsys, "--backend", "local", "run.toml", "--run-dir", "out")
    assert code == 2 and "never overwritten" in said.err


def test_verl_must_be_there_to_start(folder, capsys):
    code, said = launch(capsys, EXAMPLES / "shared.toml", "--backend", "verl", "--run-dir", "out")
    assert code == 2 and "needs verl, which is not installed here" in said.err


def test_processes_agree_on_the_folder(folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = launch(capsys, EXAMPLES / "shared.toml", "--backend", "trl")
    assert code == 2 and "--run-dir" in said.err


@pytest.mark.parametrize("backend", ["trl", "verl"])
@pytest.mark.parametrize(("task", "words"), [("calculator", "turn by turn"), ("ledgr", "did you mean ledger")])
def test_tasks_are_checked_in_a_dry_run(task, words, backend, folder, capsys):
    text = (EXAMPLES / "shared.toml").read_text().partition("[task]")
    (folder / "run.toml").write_text(f'{text[0]}[task]\nname = "{task}"\n\n[model]{text[2].partition("[model]")[2]}')
    code, said = launch(capsys, "run.toml", "--backend", backend, "--dry-run")
    assert code == 2 and "task.name" in said.err and words in said.err

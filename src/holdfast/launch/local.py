"""The run file with our own trainer: what `--dry-run` checks and prints."""

from __future__ import annotations

from holdfast.launch.runfile import RunFile
from holdfast.tasks import get_task
from holdfast.train.settings.objective import objective_of


def show(run: RunFile) -> str:
    """The objective as comments, then every setting of the run as TOML.

    Raises:
        ConfigError: a task that cannot be built, or an objective that does not exist.
    """
    import tomli_w

    get_task(run.config.task.name, **run.config.task.options)
    comments = [f"# {line}" for line in objective_of(run.config).explain().splitlines()]
    return "\n".join([*comments, "", tomli_w.dumps(run.config.to_dict()).rstrip()])

"""`holdfast preflight`: whether engine and trainer are one policy, asked in minutes, before any training."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from holdfast.audit.judge.finding import SEVERITIES
from holdfast.audit.show.terminal import line
from holdfast.errors import ConfigError
from holdfast.preflight.observe import Told
from holdfast.preflight.plan import Plan, configure, framework_named, request_fields
from holdfast.preflight.prompts import read_prompts
from holdfast.train.settings.configfile import leading_files, read_toml


def run(argv: Sequence[str]) -> int:
    """Look, say it, and exit with 0 (fine), 1 (findings), 2 (unusable input) or 130 (interrupted)."""
    files, rest = leading_files(argv)
    options, overrides = parser().parse_known_args(rest)
    if len(files) > 1:
        raise ConfigError(f"one run at a time, got {len(files)} files")
    config = configure(read_toml(files[0]) if files else {}, options.model, options.engine, overrides)
    plan = Plan(
        config=config,
        framework=framework_named(options.framework),
        responses=options.responses,
        request=request_fields(options.request),
        length=options.length,
        staleness=options.staleness,
        update_kl=options.update_kl,
        sync=not options.no_sync,
        sync_folder=options.sync_folder,
        engine_template=_text(options.engine_template),
        switches=not options.no_switches,
    )
    given = read_prompts(options.prompts)
    from holdfast.preflight.session import run_preflight

    with tempfile.TemporaryDirectory(prefix="holdfast-preflight-") as folder, _progress() as told:
        found, tokenizer = run_preflight(plan, given, Path(folder), told)
    from holdfast.preflight.show.jsonout import preflight_dict
    from holdfast.preflight.show.page import write_preflight
    from holdfast.preflight.show.terminal import print_preflight

    written = None
    if options.out or not options.json:
        out = options.out or Path("preflight-" + Path(str(config.model.source)).name)
        written = write_preflight(out, found, tokenizer)
    if options.json:
        print(json.dumps(preflight_dict(found), ensure_ascii=True, allow_nan=False))
    else:
        console = Console()
        print_preflight(console, found)
        for path in written or ():
            console.print(line(f"wrote {path}"), soft_wrap=True)
    return found.exit_code(options.fail_on)


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar on a terminal; elsewhere a line for each thing that is begun. Both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()

        def lines(doing: str, done: int, total: int) -> None:
            if doing not in said:
                said.add(doing)
                print(doing, file=sys.stderr, flush=True)

        yield lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def bar(doing: str, done: int, total: int) -> None:
            progress.update(task, description=doing, completed=done, total=total)

        yield bar


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--engine-template {path} cannot be read ({error}): give a file with a jinja template"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command's options; those of the run are given with their section."""
    made = argparse.ArgumentParser(
        prog="holdfast preflight",
        usage="holdfast preflight [RUN.toml] --model M --engine embedded|vllm|URL [options] [--section.key VALUE ...]",
        description="Before any training: sample from the engine as it will run, score with the trainer's forward, say "
        "how far the two are apart and why, check the weight sync, and propose thresholds. Exit code 0 fine, 1 "
        "findings at or above --fail-on, 2 unusable input.",
        epilog="Keys of a run are given with their section: --engine.precision bfloat16 --sampling.temperature 0.7 "
        "--model.dtype bfloat16 --model.chat true --batch.group_size 16.",
        allow_abbrev=False,
    )
    made.add_argument("--model", metavar="M", help='folder, hub name, GGUF file or "smollm2"')
    made.add_argument("--engine", metavar="E", help="embedded, vllm, or the address of a running server")
    made.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, or .jsonl (default: built in)")
    made.add_argument("--responses", type=int, default=256, metavar="N", help="responses to sample (256)")
    made.add_argument("--framework", default="Holdfast", help="whose trainer it is: verl, TRL, ... (Holdfast)")
    made.add_argument("--length", type=int, metavar="T", help="longest response planned (sampling.max_tokens)")
    made.add_argument("--staleness", type=int, metavar="S", help="updates that rollouts will be behind")
    made.add_argument("--update-kl", type=float, default=1e-4, metavar="X", help="KL per token of one update (1e-4)")
    made.add_argument(
        "--request", action="append", default=[], metavar="KEY=VALUE", help="a further field of the engine's requests"
    )
    made.add_argument("--engine-template", type=Path, metavar="FILE", help="the chat template that the engine applies")
    made.add_argument("--sync-folder", type=Path, metavar="DIR", help="where a running server reads new weights from")
    made.add_argument("--no-sync", action="store_true", help="leave the weight sync out")
    made.add_argument("--no-switches", action="store_true", help="measure the gap, and not where it comes from")
    made.add_argument("--out", type=Path, help="folder for report.html and report.json (preflight-NAME)")
    made.add_argument("--json", action="store_true", help="print report.json instead; writes no files without --out")
    made.add_argument(
        "--fail-on", choices=(*SEVERITIES, "never"), default="warning", help="exit with 1 at this severity (warning)"
    )
    return made

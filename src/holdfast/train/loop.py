"""The training loop, to be read from top to bottom.

One step: draw problems, sample a group of responses to each with the engine, score them, look at them with the
trainer's own numerics, update the policy, hand the new weights to the engine. Left out: distributed training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from holdfast.errors import HoldfastError
from holdfast.tasks import get_task
from holdfast.tasks.verify import rewards_of
from holdfast.train.brake.brake import Taken, brake_of
from holdfast.train.evaluate import evaluate, held_out_doubts
from holdfast.train.keep.checkpoint import best_checkpoint, latest_checkpoint, mark_best, save_checkpoint, saved_model
from holdfast.train.keep.folder import RunFolder
from holdfast.train.keep.hub import login_note, push_model
from holdfast.train.keep.stopwatch import Stopwatch
from holdfast.train.sampling.data import Rollouts, assemble
from holdfast.train.sampling.episodes import Episode
from holdfast.train.settings.config import RunConfig
from holdfast.train.settings.device import refuse_several_processes
from holdfast.train.settings.objective import objective_of
from holdfast.train.settings.schedule import learning_rate_at, set_learning_rate
from holdfast.train.setup import Run, set_up
from holdfast.train.show.advice import ratio_warnings, step_warnings
from holdfast.train.show.alarms import braked, guard_of, guarded, halting
from holdfast.train.show.banner import introduce
from holdfast.train.show.display import Display
from holdfast.train.show.live import LivePage
from holdfast.train.show.metrics import lag_metrics, measured, recordable, reward_metrics, step_metrics
from holdfast.train.show.records import step_records
from holdfast.train.show.samples import Samples, samples_of
from holdfast.train.show.summary import summarize
from holdfast.train.show.trackers import Trackers
from holdfast.train.warmstart import Progress

if TYPE_CHECKING:
    from holdfast.guard.guard import Look


def train(
    config: RunConfig,
    folder: RunFolder,
    *,
    display: Display,
    resume: bool = False,
    warm_starts: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train to the end, or until `stop` says so; returns what summary.json holds.

    Same configuration, same numbers, bit for bit on one machine, with or without interruptions in between.

    Raises:
        HoldfastError: the configuration cannot be built or does not fit into memory, or a step produced something that
            cannot be trained on.
    """
    refuse_several_processes()
    task = get_task(config.task.name, **config.task.options)
    display.begin(introduce(config, task, objective_of(config)))
    with (
        folder.lock(),
        closing(Trackers(config, folder)) as trackers,
        closing(
            set_up(
                config,
                folder,
                resume=resume,
                warm_starts=warm_starts,
                progress=stoppable(display.warm, stop),
                task=task,
            )
        ) as run,
    ):
        for note in start_notes(run):
            display.note(note)
        try:
            halt = take_steps(run, trackers, display, stop)
        except Exception as error:
            for note in leave(run, error):
                display.note(note)
            raise
        if run.step < run.config.steps:
            keep(run)
        summary = summarize(run) | (halting(halt) if halt else {})
        folder.write_summary(summary)
        if summary["finished"] and config.checkpoint.push_to_hub:
            summary["hub"] = push(run)
            folder.write_summary(summary)
    return summary


def take_steps(run: Run, trackers: Trackers, display: Display, stop: Callable[[], bool]) -> Look | None:
    """The loop; what the guard saw where it halted."""
    config, guard, brake = run.config, guard_of(run.config, run.folder), brake_of(run)
    page = LivePage(run.folder, config.log.report_every)
    if run.step == 0:
        doubts = held_out_doubts(run)
        report(run, {"step": 0} | evaluate(run) | ({"warnings": doubts} if doubts else {}), display, trackers)
    while run.step < config.steps and not stop():
        step, clock, spent = run.step + 1, Stopwatch(), run.sampler.cpu_seconds()
        set_learning_rate(run.optimizer, brake.scale * learning_rate_at(config.optimizer, step, config.steps))
        run.begun, run.updater.moved = torch.get_rng_state(), False
        with clock.measure("generate"):
            episodes = run.sampler.episodes(step)
        run.check_engine(episodes)
        with clock.measure("reward"):
            rollouts, judged = score(run, episodes)
        routed = measured({}, "router_drift", lambda: run.router_drift(rollouts))  # noqa: B023
        taken = brake.step(replace(rollouts, experts_changed=run.experts_changed), step, clock)
        with clock.measure("update"):
            trouble = failure_of(lambda: run.publish(step))  # noqa: B023
        run.step, run.begun = step, None
        record = {"step": step, "learning_rate": float(run.optimizer.param_groups[0]["lr"])}
        record |= step_metrics(rollouts, taken) | lag_metrics(rollouts, step) | judged | routed | run.sampler.facts()
        record |= {"warnings": []} | measured({}, "warnings", lambda: warned(record, run, taken))  # noqa: B023
        if step == 1:
            record["warnings"] += [*ratio_warnings(run.objective, config.batch.updates), *run.notes]
        if trouble is None and due(step, config.evaluation.every, config.steps):
            with clock.measure("evaluate"):
                trouble = failure_of(lambda: record.update(evaluate(run)))  # noqa: B023
        if config.log.rollouts_every and step % config.log.rollouts_every == 0:
            record = measured(record, "rollouts", lambda: write(run, taken))  # noqa: B023
        record, look = braked(*guarded(record, guard), config.guard)
        clock.elsewhere = run.sampler.cpu_seconds() - spent
        shown = partial(samples_of, taken.trained, taken.updated) if "eval_reward" in record else None
        report(run, record | clock.record(rollouts.tokens), display, trackers, shown)
        if (said := page.after(step)) is not None:
            display.note(said)
        if trouble is not None:
            raise trouble  # the step is done and on record; only what came after it is not
        if due(step, config.checkpoint.every, config.steps) or ("eval_reward" in record and is_best(run)):
            keep(run)
        if look is not None and look.halt:
            return look
    return None


def warned(record: dict[str, Any], run: Run, taken: Taken) -> dict[str, Any]:
    """What a person should know about the step."""
    return {"warnings": [*step_warnings(recordable(record), run.objective, taken.updated), *taken.warnings()]}


def write(run: Run, taken: Taken) -> dict[str, Any]:
    """The step's sequences as parquet; no number for the step's line."""
    run.folder.write_rollouts(run.step, step_records(run.config, run.source.tokenizer, taken, run.step))
    return {}


def stoppable(show: Progress, stop: Callable[[], bool]) -> Progress:
    """Progress of the warm start, which keeps nothing when it is stopped: a resumed run starts it again."""

    def progress(done: int, total: int, loss: float) -> None:
        show(done, total, loss)
        if stop():
            raise KeyboardInterrupt

    return progress


def score(run: Run, episodes: Sequence[Episode]) -> tuple[Rollouts, dict[str, Any]]:
    """The step's rollouts with their rewards, and what there is to say about the rewards that could not be had.

    Only what the policy wrote is judged, never what an environment answered.
    """
    problems = [episode.problem for episode in episodes]
    texts = [run.source.decode(episode.sampled_ids) for episode in episodes]
    scores = run.scorer(problems, texts)
    rewards = rewards_of(scores, problems, texts)
    return assemble(run.source, episodes, rewards, run.config.batch.group_size), reward_metrics(scores)


def report(
    run: Run, record: dict[str, Any], display: Display, trackers: Trackers, samples: Callable[[], Samples] | None = None
) -> None:
    """The step's line, on disk first."""
    record = recordable(record)
    if odd := record.get("non_finite"):
        named = ", ".join(f"{name} ({value})" for name, value in odd.items())
        record["warnings"] = [*record.get("warnings", []), f"numbers of this step are not finite: {named}"]
    if failed := record.get("not_measured"):
        named = ", ".join(f"{name} ({reason})" for name, reason in failed.items())
        record["warnings"] = [*record.get("warnings", []), f"some numbers could not be measured: {named}"]
    run.folder.append_metrics(record)
    notes = trackers.log(record, samples)
    with suppress(OSError):  # the terminal may be gone
        for note in notes:
            display.note(note)
        display.step(record, run.config.steps)


def failure_of(work: Callable[[], None]) -> HoldfastError | None:
    """What went wrong, if anything."""
    try:
        work()
    except HoldfastError as error:
        return error
    return None


def leave(run: Run, error: Exception) -> list[str]:
    """Keep what there is of a run that broke, and say what could not be kept.

    The finished steps are as they were unless the broken one had changed weights already.
    """
    broken = run.step + (run.begun is not None)
    said = []
    newest = latest_checkpoint(run.folder.checkpoints)
    if run.begun is not None and run.updater.moved:
        said.append(f"step {broken} broke when it had changed weights: the newest checkpoint is an earlier step's")
    elif run.step not in {record["step"] for record in run.folder.read_metrics()}:
        said.append(f"step {run.step} could not be recorded: the newest checkpoint is an earlier step's")
    elif run.step > 0 and (newest is None or newest.name != saved_model(newest.parent, run.step).parent.name):
        try:
            if run.begun is not None:
                torch.set_rng_state(run.begun)
                run.sampler.give_back(broken)
            keep(run)
        except Exception as trouble:
            said.append(f"no checkpoint of step {run.step} could be written: {trouble}")
    try:
        failed = {"finished": False, "failed_step": broken, "error": f"{type(error).__name__}: {error}"}
        run.folder.write_summary(summarize(run) | failed)
    except Exception as trouble:
        said.append(f"no summary could be written: {trouble}")
    return said


def keep(run: Run) -> None:
    """A checkpoint of the finished steps, and which of those that are kept is the best."""
    root, best, records = run.folder.checkpoints, None, []
    if run.config.checkpoint.best:
        records = run.folder.read_metrics()
        best = best_checkpoint(root, records, saving=run.step)
    save_checkpoint(
        run.folder.checkpoints,
        run.step,
        run.config.checkpoint.keep,
        model=run.saved,
        tokenizer=run.source.tokenizer,
        state=run.state(),
        best=best,
    )
    if best is not None:
        mark_best(root, records, best)


def is_best(run: Run) -> bool:
    """Whether the step just evaluated has the highest held-out reward so far, and that is wanted."""
    if not run.config.checkpoint.best:
        return False
    return run.step == best_checkpoint(run.folder.checkpoints, run.folder.read_metrics(), run.step)


def start_notes(run: Run) -> list[str]:
    """What a person should know before the first step."""
    repository = run.config.checkpoint.push_to_hub
    login = login_note(repository) if repository else None
    return [*run.start_notes, *([login] if login else [])]


def push(run: Run) -> str:
    """Upload the best model, else the last; says what came of it."""
    settings, root = run.config.checkpoint, run.folder.checkpoints
    best = best_checkpoint(root, run.folder.read_metrics()) if settings.best else None
    step = run.step if best is None else best
    assert settings.push_to_hub is not None
    return push_model(
        saved_model(root, step),
        settings.push_to_hub,
        private=settings.hub_private,
        message=f"{run.objective.name}, {step} steps (Holdfast)",
    )


def due(step: int, every: int, last: int) -> bool:
    """Every `every` steps (0: never) and after the last."""
    return step == last or (every > 0 and step % every == 0)

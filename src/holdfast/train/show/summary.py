"""How a run ended, in a few numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from holdfast.train.keep.checkpoint import best_checkpoint, saved_model
from holdfast.train.keep.ledger import Ledger, audit
from holdfast.train.settings.config import RunConfig
from holdfast.train.setup import Run


def summarize(run: Run) -> dict[str, Any]:
    """The content of summary.json, from metrics.jsonl and the parts of the run."""
    config, records = run.config, run.folder.read_metrics()
    steps = [record for record in records if record["step"] > 0]
    judged = [record for record in records if "eval_reward" in record]
    summary: dict[str, Any] = {
        "finished": run.step >= config.steps,
        "steps": run.step,
        "objective": run.objective.name,
        "formula": run.objective.explain(),
        "task": config.task.name,
        "engine": describe_engine(run.config),
        "model": describe_model(config),
        "parameters": sum(parameter.numel() for parameter in run.policy.model.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in run.updater.parameters),
        "tokens": sum(record.get("tokens", 0) for record in steps),
        "seconds": sum(record.get("seconds", 0.0) for record in steps),
        "cpu_seconds": sum(record.get("cpu_seconds", 0.0) for record in steps),
    }
    if config.asynchronous.staleness:
        summary["sequences"] = asdict(audit(Ledger(run.folder.ledger).read()))
    if judged:
        for measured in ("reward", "greedy_reward", "accuracy", "greedy_accuracy"):
            if all(f"eval_{measured}" in record for record in judged):
                summary[f"start_{measured}"] = judged[0][f"eval_{measured}"]
                summary[f"final_{measured}"] = judged[-1][f"eval_{measured}"]
    if config.checkpoint.best and (best := best_checkpoint(run.folder.checkpoints, records)) is not None:
        summary["best_step"] = best
        summary["best_reward"] = next(record["eval_reward"] for record in judged if record["step"] == best)
        summary["best_model"] = str(saved_model(run.folder.checkpoints, best).relative_to(run.folder.path))
    if steps:
        summary["final_entropy"] = steps[-1].get("entropy")
        summary["tokens_per_cpu_second"] = summary["tokens"] / max(summary["cpu_seconds"], 1e-9)
    return summary


def describe_model(config: RunConfig) -> str:
    """Where the model is from."""
    model = config.model
    return model.source or f"Qwen3, {model.layers} layers of width {model.hidden}"


def describe_engine(config: RunConfig) -> str:
    """The engine in words: how it differs from the trainer."""
    copies = {"embedded": "copy", "vllm": "vLLM copy", "server": "server"}
    own = "" if config.engine.kind == "server" else f"{config.engine.precision} "
    parts = [f"{own}{copies[config.engine.kind]} of the {config.model.dtype} trainer"]
    behind = config.engine.lag or config.asynchronous.staleness
    parts.append("up to date" if behind == 0 else f"{behind} updates behind")
    if config.asynchronous.staleness:
        parts.append("in a process of its own")
    sampling = config.sampling
    if sampling.temperature != 1.0:
        parts.append(f"temperature {sampling.temperature:g}")
    if sampling.truncates:
        named = {"top-p": sampling.top_p, "top-k": sampling.top_k, "min-p": sampling.min_p}
        parts += [f"{name} {value:g}" for name, value in named.items() if value not in (0, 1.0)]
    return ", ".join(parts)

"""How each framework calls a loss: what it hands over, what it does with the result. Contracts, not frameworks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from holdfast.check_loss.cases import Case, Loss
from holdfast.check_loss.trl import trl_call
from holdfast.errors import DataError

ALIASES: Mapping[str, tuple[str, ...]] = {
    "logprobs": ("logprobs", "log_probs", "log_prob", "logps", "new_logprobs", "per_token_logps", "trainer_logprobs"),
    "old": ("old_logprobs", "old_log_probs", "old_log_prob", "old_logps", "old_per_token_logps"),
    "rollout": ("rollout_logprobs", "rollout_log_probs", "rollout_log_prob", "inference_logprobs",
                "sampling_logprobs", "sampling_per_token_logps", "behavior_logprobs"),
    "ref": ("ref_logprobs", "ref_log_probs", "ref_log_prob", "ref_per_token_logps"),
    "advantages": ("advantages", "advantage", "adv"),
    "mask": ("response_mask", "mask", "loss_mask", "action_mask", "completion_mask"),
    "entropy": ("entropy", "entropies"),
    "tokens": ("num_items_in_batch", "num_tokens", "total_tokens", "batch_num_tokens"),
    "sequences": ("num_sequences", "total_sequences", "global_batch_size"),
}  # fmt: skip
"""Names of parameters that a plain loss may have."""

_MEANING = {name: meaning for meaning, names in ALIASES.items() for name in names}


def load(path: str) -> Any:
    """The object that `module:name` or `file.py:name` names.

    Raises:
        DataError: it cannot be imported, or has no such name.
    """
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise DataError(f"{path!r} names no loss: write module:function, or path/to/file.py:function")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    except Exception as error:
        raise DataError(f"cannot import {where!r}: {type(error).__name__}: {error}") from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise DataError(f"{where!r} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise DataError(f"{path!r} is a {type(found).__name__}, which cannot be called")
    return found


def _from_path(name: str) -> Any:
    # As `python -m` has it: what lies in the folder that the command was given in can be named.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def build(path: str, shape: str, settings: Mapping[str, Any]) -> Loss:
    """The loss behind `path` in one of `SHAPES`, with `settings` as that framework passes them.

    Raises:
        DataError: it cannot be imported, or its signature is not the shape's.
    """
    found = load(path)
    name = path.rpartition(":")[2]
    return SHAPES[shape](name, found, dict(settings))


def per_token(case: Case) -> Tensor:
    """Advantages [B, T], zero at masked tokens."""
    return torch.where(case.mask, case.batch.advantages[:, None], 0)


def _parameters(name: str, function: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} has no signature that can be read: {error}") from error


def _require(name: str, shape: str, function: Any, contract: str, *arguments: Any, **keywords: Any) -> None:
    """Raise DataError unless the function can be called like this."""
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError as error:
        raise DataError(f"{name} does not have the signature of --shape {shape}, {contract}: {error}") from error


def plain(name: str, function: Any, settings: dict[str, Any]) -> Loss:
    """function(logprobs, old_logprobs, advantages, mask, ...) -> loss: parameters are known by their names (`ALIASES`).

    A class is built with `settings` first; a function gets them as keywords. Micro-batches are averaged, as gradient
    accumulation does, unless the function takes the counts of the whole step.
    """
    if inspect.isclass(function):
        try:
            function, settings = function(**settings), {}
        except Exception as error:
            raise DataError(f"{name}({settings}) raised {type(error).__name__}: {error}") from error
    own = function.forward if isinstance(function, torch.nn.Module) else function
    parameters = _parameters(name, own)
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if unknown := [key for key in settings if key not in parameters and not free]:
        raise DataError(f"{name} takes no {', '.join(unknown)}; it takes {', '.join(parameters)}")
    meanings = {key: _MEANING[key] for key in parameters if key in _MEANING and key not in settings}
    strange = [
        key
        for key, p in parameters.items()
        if key not in meanings
        and key not in settings
        and p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if strange:
        known = "; ".join(f"{meaning}: {', '.join(names)}" for meaning, names in ALIASES.items())
        raise DataError(f"{name} needs {', '.join(strange)}, which --shape plain does not know; known are {known}")
    if "logprobs" not in meanings.values() or "advantages" not in meanings.values():
        raise DataError(
            f"{name}({', '.join(parameters)}) takes no current log-probabilities ({', '.join(ALIASES['logprobs'])}) or "
            "no advantages: is it a loss of another --shape?"
        )

    def call(case: Case) -> Any:
        batch = case.batch
        values = {
            "logprobs": case.logprobs, "old": batch.old_logprobs, "rollout": batch.rollout_logprobs,
            "ref": batch.ref_logprobs, "advantages": per_token(case), "mask": case.mask.to(case.logprobs.dtype),
            "entropy": case.entropy, "tokens": torch.tensor(case.tokens), "sequences": torch.tensor(case.sequences),
        }  # fmt: skip
        given = {key: values[meaning] for key, meaning in meanings.items()}
        try:
            return function(**given, **settings)
        except (TypeError, RuntimeError, IndexError):
            # Masks are numbers to some losses and booleans to others (x[mask], torch.where).
            boolean = {key: case.mask for key, meaning in meanings.items() if meaning == "mask"}
            if not boolean:
                raise
            try:
                return function(**given | boolean, **settings)
            except (TypeError, RuntimeError, IndexError):
                pass
            raise

    counted = bool({"tokens", "sequences"} & set(meanings.values()))
    old = "old" in meanings.values()
    return Loss(name, "plain", call, "sum" if counted else "mean", old, "rollout" in meanings.values(), settings)


def verl(name: str, function: Any, settings: dict[str, Any]) -> Loss:
    """function(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights)."""
    contract = "(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights=None)"
    names = ("old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config")
    _require(name, "verl", function, contract, **dict.fromkeys(names))
    mode = settings.pop("loss_agg_mode", "token-mean")
    _actor_config(settings, mode, {})

    def call(case: Case) -> Any:
        counts = {"dp_size": 1, "batch_num_tokens": case.tokens, "global_batch_size": case.sequences}
        return function(
            old_log_prob=case.batch.old_logprobs, log_prob=case.logprobs, advantages=per_token(case),
            response_mask=case.mask.long(), loss_agg_mode=mode, config=_actor_config(settings, mode, counts),
        )  # fmt: skip

    return Loss(name, "verl", call, "sum", True, False, settings | {"loss_agg_mode": mode})


def _actor_config(settings: Mapping[str, Any], mode: str, counts: Mapping[str, Any]) -> Any:
    """verl's actor configuration where verl is installed, else a stand-in with what its losses read."""
    try:
        from verl.workers.config import FSDPActorConfig, PolicyLossConfig  # pyright: ignore[reportMissingImports]
    except ImportError:
        clip = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
        return SimpleNamespace(
            **clip | {"loss_agg_mode": mode, "policy_loss": {}, "tis_imp_ratio_cap": -1} | dict(settings),
            global_batch_info=dict(counts),
        )
    known = PolicyLossConfig.__dataclass_fields__
    own = {key: value for key, value in settings.items() if key in known}
    actor = {key: value for key, value in settings.items() if key not in known}
    scale = {"loss_scale_factor": actor.pop("loss_scale_factor")} if "loss_scale_factor" in actor else {}
    try:
        return FSDPActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=PolicyLossConfig(**own),
            global_batch_info=dict(counts) | scale, loss_agg_mode=mode, **actor,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise DataError(f"verl's actor config does not take {', '.join(actor)}: {error}") from error


@dataclass
class LossInputs:
    """prime-rl's inputs of one sequence."""

    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = None


def prime_rl(name: str, function: Any, settings: dict[str, Any]) -> Loss:
    """function(LossInputs of one sequence, **kwargs) -> LossOutputs(loss=a sum); divided by the step's tokens."""
    _require(name, "prime-rl", function, "(inputs, **kwargs)", None, **settings)

    def call(case: Case) -> Any:
        total = case.logprobs.sum() * 0
        for row in range(len(case.mask)):
            batch = case.batch
            assert batch.rollout_logprobs is not None and batch.ref_logprobs is not None
            out = function(
                LossInputs(
                    case.logprobs[row], batch.rollout_logprobs[row], batch.ref_logprobs[row], per_token(case)[row],
                    case.mask[row],
                ),
                **settings,
            )  # fmt: skip
            total = total + (out.loss if hasattr(out, "loss") else out[0] if isinstance(out, tuple) else out)
        return total / max(case.tokens, 1)

    return Loss(name, "prime-rl", call, "sum", separate_old=False, settings=settings)


class TensorData:
    """A tensor in Tinker's wrapping."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self.shape, self.data = list(values.shape), values.flatten().tolist()

    def to_torch(self) -> Tensor:
        """The tensor."""
        return self._values

    def to_numpy(self) -> Any:
        """The same for numpy."""
        return self._values.numpy()

    def tolist(self) -> list[float]:
        """The same as a list."""
        return self._values.tolist()


def tinker(name: str, function: Any, settings: dict[str, Any]) -> Loss:
    """function(data: list[Datum], logprobs: list[Tensor]) -> (loss, metrics), all sequences of the step at once."""
    _require(name, "tinker", function, "(data, logprobs)", None, None, **settings)

    def call(case: Case) -> Any:
        batch = case.batch
        assert batch.rollout_logprobs is not None
        ends = [int(row.nonzero().max()) + 1 if bool(row.any()) else 0 for row in case.mask]
        data = [
            SimpleNamespace(
                model_input=None,
                loss_fn_inputs={
                    "logprobs": TensorData(batch.rollout_logprobs[row, :end]),
                    "advantages": TensorData(per_token(case)[row, :end]),
                    "mask": TensorData(case.mask[row, :end].to(case.logprobs.dtype)),
                },
            )
            for row, end in enumerate(ends)
        ]
        return function(data, [case.logprobs[row, :end] for row, end in enumerate(ends)], **settings)

    return Loss(name, "tinker", call, "once", separate_old=False, settings=settings)


def slime(name: str, function: Any, settings: dict[str, Any]) -> Loss:
    """A function of --custom-tis-function-path: it changes slime's PPO loss per token, and its masks.

    (args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, response_lengths) -> (pg_loss,
    masks, metrics). The reduction is slime's: a mean over each response's own tokens, added up over the step's samples.
    """
    contract = "(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, response_lengths)"
    keys = ("pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks", "total_lengths", "response_lengths")
    _require(name, "slime", function, contract, None, **dict.fromkeys(keys))
    args = SimpleNamespace(**{"tis_clip": 2.0, "tis_clip_low": 0.0, "eps_clip": 0.2, "eps_clip_high": 0.2} | settings)

    def call(case: Case) -> Any:
        batch, width = case.batch, case.mask.shape[1]
        assert batch.old_logprobs is not None and batch.rollout_logprobs is not None
        advantages, ratio = per_token(case), (case.logprobs - batch.old_logprobs).clamp(-20, 20).exp()
        clipped = ratio.clamp(1 - args.eps_clip, 1 + args.eps_clip_high)
        losses, masks, _ = function(
            args,
            pg_loss=-torch.minimum(ratio * advantages, clipped * advantages).flatten(),
            train_log_probs=list(batch.old_logprobs),
            rollout_log_probs=list(batch.rollout_logprobs),
            loss_masks=list(case.mask.to(case.logprobs.dtype)),
            total_lengths=[width + 1] * len(case.mask),
            response_lengths=[width] * len(case.mask),
        )
        kept = torch.where(torch.stack(list(masks)) > 0, losses.view(case.mask.shape), 0)
        return (kept.sum(dim=-1, keepdim=True) / case.lengths).sum() / max(case.sequences, 1)

    return Loss(name, "slime", call, "sum", settings=settings)


def trl(name: str, function: Any, settings: dict[str, Any]) -> Loss:
    """A GRPOTrainer with its own `_compute_loss`, or function(trainer, model, inputs); see `trl_call`."""
    return Loss(name, "trl", trl_call(name, function, settings), "sum", True, False, settings)


SHAPES: Mapping[str, Callable[[str, Any, dict[str, Any]], Loss]] = {
    "plain": plain, "trl": trl, "verl": verl, "prime-rl": prime_rl, "tinker": tinker, "slime": slime,
}  # fmt: skip

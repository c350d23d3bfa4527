"""What the plug-in relies on inside TRL, in one place: the names it uses, and the releases they were tried with.

TRL's losses are private methods, so a release may break the plug-in. What decides is whether a name that it relies on
has changed, not the number of the release: where nothing changed a release that was never tried is warned of and
used; where something did, it is refused before a run starts, with the names, instead of failing in the middle of one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Set
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from holdfast.errors import ConfigError

TESTED = ("1.10", "1.11", "1.12", "1.13", "1.14", "1.16")
"""Releases that the plug-in's tests pass with: add one when `make test-trl-matrix` does."""

_SCORED = (
    "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
    "compute_aux_loss",
)  # fmt: skip
SIGNATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "__init__": (("self", "model", "reward_funcs", "args", "train_dataset"),),
    "_compute_loss": (("self", "model", "inputs"),),
    "_generate": (("self", "prompts"),),
    "_generate_and_score_completions": (("self", "inputs"),),
    "_generate_single_turn": (("self", "prompt_ids"),),
    "_calculate_rewards": (("self", "inputs", "prompts", "completions", "completion_ids_list"),),
    # 1.14 hands everything on to one of two functions.
    "_get_per_token_logps_and_entropies": (_SCORED, ("self", "model", "args")),
    "create_model_card": (("self", "model_name", "dataset_name", "tags"),),
}
"""Methods of GRPOTrainer that are overridden or called, with the parameters that they begin with."""

ATTRIBUTES = (
    "_buffered_inputs", "_logs", "_metrics", "_step", "_tokenizer", "aux_loss_enabled", "num_generations",
    "num_generations_eval", "num_iterations", "reward_weights", "router_aux_loss_coef", "temperature",
)  # fmt: skip
"""Attributes of a GRPOTrainer that are read."""

INPUTS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
"""What a generation holds, whatever the settings."""


def require_supported() -> None:
    """Raise ConfigError unless TRL is there with all that the plug-in relies on; warn of releases never tried."""
    try:
        installed = version("trl")
    except PackageNotFoundError:
        raise ConfigError("the TRL plug-in needs TRL, which is not installed: pip install 'holdfast-rl[trl]'") from None
    if changed := differences():
        raise ConfigError(_refusal(installed, changed))
    if ".".join(installed.split(".")[:2]) not in TESTED:
        warnings.warn(
            f"trl {installed} was never tried with this plug-in (tried: {', '.join(TESTED)}); everything that "
            f"it relies on is there. If a run looks odd: pip install 'trl~={TESTED[-1]}.0'",
            stacklevel=2,
        )


def require_trainer(trainer: Any) -> None:
    """Raise ConfigError where a trainer lacks an attribute, or scales its loss once more than ours is scaled."""
    if changed := differences(trainer):
        raise ConfigError(_refusal(version("trl"), changed))


def require_inputs(inputs: Any) -> None:
    """Raise ConfigError where a generation lacks what the loss is made of."""
    if missing := [f"a generation has no {name}" for name in INPUTS if name not in inputs]:
        raise ConfigError(_refusal(version("trl"), missing))


def require_gradient(needs: Set[str], **given: Any) -> None:
    """Raise ConfigError where the loss would be blind to something that the objective differentiates."""
    if not given["logprobs"].requires_grad:
        return  # an evaluation
    if blind := [
        f"{name} comes without a gradient" for name in given if name in needs and not given[name].requires_grad
    ]:
        raise ConfigError(_refusal(version("trl"), blind))


def differences(trainer: Any = None) -> list[str]:
    """What the plug-in relies on and this TRL does not have; attributes are checked on a trainer, if one is given."""
    try:
        from trl import GRPOTrainer
    except ImportError as error:
        return [f"trl.GRPOTrainer cannot be imported ({error})"]
    found = []
    for name, forms in SIGNATURES.items():
        method = getattr(GRPOTrainer, name, None)
        actual = None if method is None else tuple(inspect.signature(method).parameters)
        if actual is None:
            found.append(f"GRPOTrainer.{name} is gone")
        elif not any(actual[: len(form)] == form for form in forms):
            found.append(f"GRPOTrainer.{name} takes ({', '.join(actual)}), expected ({', '.join(forms[0])}, ...)")
    if trainer is None:
        return found
    found += [f"GRPOTrainer has no attribute {name}" for name in ATTRIBUTES if not hasattr(trainer, name)]
    if not getattr(trainer, "loss_is_scaled_for_ga", None) and getattr(trainer, "compute_loss_func", None) is None:
        found.append("GRPOTrainer leaves the scaling for gradient accumulation to transformers")
    return found


def eos_ids(trainer: Any) -> list[int]:
    """Token ids that end a completion; before 1.15 TRL knew one."""
    own = getattr(trainer, "eos_token_ids", None)
    return [trainer._tokenizer.eos_token_id] if own is None else list(own)


def _refusal(installed: str, changed: list[str]) -> str:
    return (
        f"trl {installed} is installed, and changed what the plug-in relies on: {'; '.join(changed)}; "
        f"pip install 'trl~={TESTED[-1]}.0'"
    )

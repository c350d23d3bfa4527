"""The checks, data errors first; a new check is one file and one entry here."""

from holdfast.audit.checks.acceptance_by_length import AcceptanceByLength
from holdfast.audit.checks.check import Check, Facts
from holdfast.audit.checks.dead_clip import DeadClip
from holdfast.audit.checks.drift_by_environment import DriftByEnvironment
from holdfast.audit.checks.drift_level import DriftLevel
from holdfast.audit.checks.drift_with_age import DriftWithAge
from holdfast.audit.checks.drift_with_depth import DriftWithDepth
from holdfast.audit.checks.drift_with_step import DriftWithStep
from holdfast.audit.checks.drift_with_turn import DriftWithTurn
from holdfast.audit.checks.entropy_collapse import EntropyCollapse
from holdfast.audit.checks.few_prompts_dominate import FewPromptsDominate
from holdfast.audit.checks.few_tokens_dominate import FewTokensDominate
from holdfast.audit.checks.forced_tokens import ForcedTokens
from holdfast.audit.checks.invalid_logprobs import InvalidLogprobs
from holdfast.audit.checks.masks_reject_most import MasksRejectMost
from holdfast.audit.checks.noise_floor import NoiseFloor
from holdfast.audit.checks.repeated_data import RepeatedData
from holdfast.audit.checks.shifted_by_one import ShiftedByOne
from holdfast.audit.checks.support_mismatch import SupportMismatch
from holdfast.audit.checks.temperature_mismatch import TemperatureMismatch
from holdfast.audit.checks.vanishing_weights import VanishingWeights
from holdfast.audit.checks.wrong_token import WrongToken
from holdfast.audit.checks.zero_filled import ZeroFilled

CHECKS: tuple[type[Check], ...] = (
    InvalidLogprobs,
    ZeroFilled,
    ShiftedByOne,
    TemperatureMismatch,
    SupportMismatch,
    WrongToken,
    ForcedTokens,
    RepeatedData,
    NoiseFloor,
    FewTokensDominate,
    FewPromptsDominate,
    DriftLevel,
    DriftWithDepth,
    DriftWithTurn,
    DriftWithAge,
    DriftWithStep,
    DriftByEnvironment,
    AcceptanceByLength,
    MasksRejectMost,
    DeadClip,
    VanishingWeights,
    EntropyCollapse,
)

__all__ = ["CHECKS", "Check", "Facts"]

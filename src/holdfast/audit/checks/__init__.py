"""The checks, data errors first; a new check is one file and one entry here."""

from holdfast.audit.checks.check import Check, Facts
from holdfast.audit.checks.drift_with_depth import DriftWithDepth
from holdfast.audit.checks.few_prompts_dominate import FewPromptsDominate
from holdfast.audit.checks.few_tokens_dominate import FewTokensDominate
from holdfast.audit.checks.forced_tokens import ForcedTokens
from holdfast.audit.checks.invalid_logprobs import InvalidLogprobs
from holdfast.audit.checks.noise_floor import NoiseFloor
from holdfast.audit.checks.repeated_data import RepeatedData
from holdfast.audit.checks.shifted_by_one import ShiftedByOne
from holdfast.audit.checks.support_mismatch import SupportMismatch
from holdfast.audit.checks.temperature_mismatch import TemperatureMismatch
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
    DriftWithDepth,
)

__all__ = ["CHECKS", "Check", "Facts"]

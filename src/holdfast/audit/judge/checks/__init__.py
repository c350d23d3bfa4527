"""The checks, in the order in which findings of one severity are told: data errors first, then causes before sums.

A new check is one file here and one entry in `CHECKS`. A check is fed `View`s, keeps bounded sums, and gives findings
at the end. The folders are the kinds of finding: `data` (the log itself is wrong), `drift` (engine and trainer
disagree), `training` (settings and progress), and `credit` (what a token is paid for).
"""

from holdfast.audit.judge.checks.check import Check, Facts
from holdfast.audit.judge.checks.credit.group_advantages import GroupAdvantages
from holdfast.audit.judge.checks.credit.mask_placement import MaskPlacement
from holdfast.audit.judge.checks.credit.short_paid import ShortPaid
from holdfast.audit.judge.checks.data.coarse_logprobs import CoarseLogprobs
from holdfast.audit.judge.checks.data.doubled_token import DoubledToken
from holdfast.audit.judge.checks.data.exact_kl_contradicted import ExactKlContradicted
from holdfast.audit.judge.checks.data.forced_tokens import ForcedTokens
from holdfast.audit.judge.checks.data.impossible_ratios import ImpossibleRatios
from holdfast.audit.judge.checks.data.invalid_logprobs import InvalidLogprobs
from holdfast.audit.judge.checks.data.repetition_penalty import RepetitionPenalty
from holdfast.audit.judge.checks.data.retokenised import Retokenised
from holdfast.audit.judge.checks.data.shifted_by_one import ShiftedByOne
from holdfast.audit.judge.checks.data.support_mismatch import SupportMismatch
from holdfast.audit.judge.checks.data.temperature_mismatch import TemperatureMismatch
from holdfast.audit.judge.checks.data.wrong_token import WrongToken
from holdfast.audit.judge.checks.data.zero_filled import ZeroFilled
from holdfast.audit.judge.checks.drift.drift_at_start import DriftAtStart
from holdfast.audit.judge.checks.drift.drift_by_environment import DriftByEnvironment
from holdfast.audit.judge.checks.drift.drift_jump import DriftJump
from holdfast.audit.judge.checks.drift.drift_level import DriftLevel
from holdfast.audit.judge.checks.drift.drift_with_age import DriftWithAge
from holdfast.audit.judge.checks.drift.drift_with_depth import DriftWithDepth
from holdfast.audit.judge.checks.drift.drift_with_step import DriftWithStep
from holdfast.audit.judge.checks.drift.drift_with_turn import DriftWithTurn
from holdfast.audit.judge.checks.drift.few_prompts_dominate import FewPromptsDominate
from holdfast.audit.judge.checks.drift.few_tokens_dominate import FewTokensDominate
from holdfast.audit.judge.checks.drift.heavy_tails import HeavyTails
from holdfast.audit.judge.checks.drift.noise_floor import NoiseFloor
from holdfast.audit.judge.checks.drift.outlier_sequences import OutlierSequences
from holdfast.audit.judge.checks.drift.signed_skew import SignedSkew
from holdfast.audit.judge.checks.training.acceptance_by_length import AcceptanceByLength
from holdfast.audit.judge.checks.training.dead_clip import DeadClip
from holdfast.audit.judge.checks.training.entropy_collapse import EntropyCollapse
from holdfast.audit.judge.checks.training.masks_reject_most import MasksRejectMost
from holdfast.audit.judge.checks.training.repeated_data import RepeatedData
from holdfast.audit.judge.checks.training.repeated_token import RepeatedToken
from holdfast.audit.judge.checks.training.vanishing_weights import VanishingWeights
from holdfast.audit.judge.checks.training.versions_go_back import VersionsGoBack

CHECKS: tuple[type[Check], ...] = (
    InvalidLogprobs,
    Retokenised,
    ShiftedByOne,
    MaskPlacement,
    ZeroFilled,
    RepetitionPenalty,
    TemperatureMismatch,
    SupportMismatch,
    WrongToken,
    ImpossibleRatios,
    ForcedTokens,
    ExactKlContradicted,
    DoubledToken,
    CoarseLogprobs,
    GroupAdvantages,
    ShortPaid,
    RepeatedToken,
    RepeatedData,
    VersionsGoBack,
    DriftJump,
    OutlierSequences,
    FewTokensDominate,
    HeavyTails,
    SignedSkew,
    FewPromptsDominate,
    DriftAtStart,
    DriftWithDepth,
    DriftWithTurn,
    DriftWithAge,
    DriftWithStep,
    DriftByEnvironment,
    NoiseFloor,
    DriftLevel,
    AcceptanceByLength,
    MasksRejectMost,
    DeadClip,
    VanishingWeights,
    EntropyCollapse,
)

__all__ = ["CHECKS", "Check", "Facts"]

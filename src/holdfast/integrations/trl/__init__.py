"""TRL: `HoldfastGRPOTrainer` is TRL's GRPOTrainer with one of Holdfast's objectives as its loss."""

from holdfast.integrations.trl.contract import require_supported

require_supported()

from holdfast.integrations.trl.config import HoldfastGRPOConfig  # noqa: E402
from holdfast.integrations.trl.guard import GuardCallback  # noqa: E402
from holdfast.integrations.trl.trainer import HoldfastGRPOTrainer  # noqa: E402

__all__ = ["GuardCallback", "HoldfastGRPOConfig", "HoldfastGRPOTrainer"]

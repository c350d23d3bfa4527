"""Settings of verl that change how a step is cut, computed or weighted: ours trains as verl's own loss under each."""

import pytest

from holdfast.integrations.verl.names import loss_overrides
from integrations.verl.runs import EPOCHS, start

pytestmark = pytest.mark.slow

ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
WHOLE_STEP = {"penalties": [{"kind": "kl_cov", "beta": 0.0, "share": 0.2}]}
"""KL-Cov with coefficient 0: the whole step is gathered over all ranks before each update, and changes nothing."""


def settings(variant: str, toy: str) -> list[str]:
    return {
        "mini-batches of dynamic size": [
            f"{ACTOR}.use_dynamic_bsz=True",
            f"{ACTOR}.ppo_max_token_len_per_gpu=64",
            f"{ACTOR}.ppo_mini_batch_size=2",
        ],
        "fused kernels": [
            f"{ACTOR}.strategy=fsdp",
            f"{MODEL}.use_fused_kernels=True",
            f"{MODEL}.fused_kernel_options.impl_backend=torch",
        ],
        "groups filtered by reward": [
            "algorithm.filter_groups.enable=True",
            "algorithm.filter_groups.metric=reward",
        ],
        "merged LoRA": [
            f"{MODEL}.lora_rank=4",
            f"{MODEL}.lora_alpha=8",
            f"{MODEL}.target_modules=all-linear",
            f"{MODEL}.lora.merge=True",
        ],
        "critic with GAE": [
            "algorithm.adv_estimator=gae",
            "critic.enable=True",
            "critic.strategy=fsdp2",
            f"critic.model.path={toy}",
            f"critic.model.tokenizer_path={toy}",
            "+critic.model.override_config.attn_implementation=sdpa",
            "critic.model.enable_gradient_checkpointing=False",
            "critic.ppo_micro_batch_size_per_gpu=4",
            "critic.ppo_mini_batch_size=4",
            "critic.fsdp.use_torch_compile=False",
        ],
        "sequences cut over two ranks": [
            f"{MODEL}.override_config.attn_implementation=packed",
            f"{MODEL}.use_remove_padding=True",
            f"{ACTOR}.ulysses_sequence_parallel_size=2",
        ],
    }[variant]


@pytest.mark.parametrize(
    ("variant", "ranks"),
    [
        ("mini-batches of dynamic size", 1),
        ("fused kernels", 1),
        ("groups filtered by reward", 1),
        ("merged LoRA", 1),
        ("critic with GAE", 1),
        ("sequences cut over two ranks", 2),
    ],
)
def test_ours_trains_as_verls_own_loss(variant, ranks, tmp_path):
    given = (*EPOCHS, *settings(variant, str(tmp_path / "world" / "model")))
    verls = start(tmp_path, "verl", 2, *given, ranks=ranks)
    level_2 = ("trainer.v1.trainer_mode=holdfast_sync", *loss_overrides("ppo", WHOLE_STEP))
    ours = start(tmp_path, "ours", 2, *given, *level_2, ranks=ranks)
    for name in ("actor/pg_loss", "actor/grad_norm", "actor/entropy", "critic/score/mean"):
        assert ours.column(name) == pytest.approx(verls.column(name), rel=5e-5, abs=1e-6), name
    assert all(share > 0 for share in verls.column("actor/pg_clipfrac"))

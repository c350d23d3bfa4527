#!/usr/bin/env bash
# A whole run at level 2 in minutes: trust region masking in verl, with records, a checkpoint and everything it needs.
#   bash examples/verl/cpu_smoke.sh                           a toy model on the CPU, engine noise as mismatch
#   MODEL=Qwen/Qwen3-0.6B bash examples/verl/cpu_smoke.sh     the same on one GPU with vLLM
# The task: answer `7+7` with digits; the reward is their share of the answer. 32 prompts, 4 of 4 samples a step.
# Check it without starting anything:  RUN="python3 -m holdfast.integrations.verl" bash examples/verl/cpu_smoke.sh
# Afterwards:  holdfast audit runs/cpu_smoke/rollouts
set -euo pipefail

PYTHON="${PYTHON:-python3}"
OUT="${OUT:-$PWD/runs/cpu_smoke}"
TOY="$(cd "$(dirname "$0")/../.." && pwd)/tests/integrations/verl"
ACTOR=actor_rollout_ref.actor
ROLLOUT=actor_rollout_ref.rollout

export PYTHONPATH="$TOY${PYTHONPATH:+:$PYTHONPATH}"
test -f "$OUT/world/train.parquet" || "$PYTHON" -c "import pathlib, cpu.world as w; w.build(pathlib.Path('$OUT/world'))"

if test -z "${MODEL:-}"; then
  # verl's platform and rollout for a machine without an accelerator; Ray's logical "GPU" is one CPU process.
  export VERL_PLATFORM=cpu VERL_ENGINE_DEVICE=cuda VERL_USE_EXTERNAL_MODULES=cpu.rollout HF_HUB_OFFLINE=1
  export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HOLDFAST_CPU_NOISE="${HOLDFAST_CPU_NOISE:-0.06}"
  MACHINE=(
    trainer.device=cpu
    +ray_kwargs.ray_init.num_gpus=1
    ray_kwargs.ray_init.num_cpus=16
    +ray_kwargs.ray_init.include_dashboard=False
    +ray_kwargs.ray_init.object_store_memory=300000000
    actor_rollout_ref.model.path="$OUT/world/model"
    +actor_rollout_ref.model.override_config.attn_implementation=sdpa
    actor_rollout_ref.model.enable_gradient_checkpointing=False
    $ACTOR.use_torch_compile=False
    $ACTOR.fsdp_config.use_torch_compile=False
    "+$ACTOR.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"
    $ACTOR.optim.lr=1e-2
    $ROLLOUT.name=holdfast_cpu
    data.max_response_length=12
  )
else
  MACHINE=(
    actor_rollout_ref.model.path="$MODEL"
    $ACTOR.optim.lr=1e-6
    $ROLLOUT.name=vllm
    $ROLLOUT.gpu_memory_utilization=0.4
    data.max_response_length=128
  )
fi

${RUN:-$PYTHON -m verl.trainer.main_ppo} \
  trainer.v1.trainer_mode=holdfast_sync \
  $ACTOR.policy_loss._target_=holdfast.integrations.verl.config.HoldfastLossConfig \
  $ACTOR.policy_loss.loss_mode=holdfast \
  +$ACTOR.policy_loss.objective=trm+sspo+kl_cov \
  +$ACTOR.policy_loss.baseline=accepted \
  +$ACTOR.policy_loss.records="$OUT/rollouts" \
  data.train_files="$OUT/world/train.parquet" \
  data.val_files="$OUT/world/train.parquet" \
  data.train_batch_size=4 \
  data.max_prompt_length=64 \
  data.dataloader_num_workers=0 \
  algorithm.adv_estimator=grpo \
  $ACTOR.strategy=fsdp2 \
  $ACTOR.ppo_mini_batch_size=4 \
  $ACTOR.ppo_micro_batch_size_per_gpu=4 \
  $ROLLOUT.n=4 \
  $ROLLOUT.tensor_model_parallel_size=1 \
  $ROLLOUT.calculate_log_probs=true \
  $ROLLOUT.log_prob_micro_batch_size_per_gpu=4 \
  $ROLLOUT.agent.num_workers=1 \
  reward.custom_reward_function.path="$TOY/cpu/world.py" \
  reward.custom_reward_function.name=digits \
  reward.num_workers=1 \
  trainer.nnodes=1 \
  trainer.n_gpus_per_node=1 \
  trainer.total_epochs=1 \
  trainer.total_training_steps="${STEPS:-6}" \
  trainer.val_before_train=False \
  trainer.test_freq=-1 \
  trainer.save_freq="${STEPS:-6}" \
  trainer.resume_mode=disable \
  trainer.default_local_dir="$OUT/checkpoints" \
  trainer.logger='[console]' \
  trainer.project_name=holdfast \
  trainer.experiment_name=cpu_smoke \
  hydra.run.dir="$OUT/hydra" \
  "${MACHINE[@]}" \
  "$@"

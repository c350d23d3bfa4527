#!/usr/bin/env bash
# Level 1: DAPO's loss from Holdfast in an ordinary verl run, one node of 8 GPUs. Only loss_mode is ours.
#   TRAIN=train.parquet VALID=valid.parquet bash examples/verl/dapo_one_node.sh
# Check it without starting anything:  RUN="python3 -m holdfast.integrations.verl" bash examples/verl/dapo_one_node.sh
# Checkpoints every 20 steps in $RUN_DIR; the log goes to the console, LOGGER='[console,wandb]' after `wandb login`.
set -euo pipefail

NAME="${NAME:-dapo_one_node}"
RUN_DIR="${RUN_DIR:-$PWD/runs/$NAME}"

${RUN:-python3 -m verl.trainer.main_ppo} \
  data.train_files="${TRAIN:-$PWD/train.parquet}" \
  data.val_files="${VALID:-$PWD/valid.parquet}" \
  data.train_batch_size=256 \
  data.max_prompt_length=1024 \
  data.max_response_length=8192 \
  data.filter_overlong_prompts=true \
  algorithm.adv_estimator=grpo \
  actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen3-4B}" \
  actor_rollout_ref.model.use_remove_padding=true \
  actor_rollout_ref.actor.strategy=fsdp2 \
  actor_rollout_ref.actor.policy_loss.loss_mode=holdfast_dapo \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=64 \
  actor_rollout_ref.actor.use_dynamic_bsz=true \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=18432 \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.n=8 \
  actor_rollout_ref.rollout.calculate_log_probs=true \
  trainer.n_gpus_per_node=8 \
  trainer.total_epochs=1 \
  trainer.save_freq=20 \
  trainer.max_actor_ckpt_to_keep=3 \
  trainer.test_freq=20 \
  trainer.default_local_dir="$RUN_DIR/checkpoints" \
  trainer.logger="${LOGGER:-[console]}" \
  trainer.project_name=holdfast \
  trainer.experiment_name="$NAME" \
  "$@"

#!/usr/bin/env bash
# Level 2: trust region masking, soft sequence policy optimisation and KL-Cov on 8 nodes of 8 GPUs, 32 k tokens.
# Rejected sequences leave their group's baseline; every trained token is recorded for `holdfast audit`.
# Start Ray on all nodes, then on the head, with a folder that every node sees:
#   SHARED=/shared TRAIN=/shared/train.parquet VALID=/shared/valid.parquet bash examples/verl/trm_8x8.sh
# Check it without starting anything:  RUN="python3 -m holdfast.integrations.verl" bash examples/verl/trm_8x8.sh
# Checkpoints every 20 steps, the last three kept; started again, it goes on from the last one.
# The log goes to the console and to TensorBoard in $RUN_DIR; LOGGER='[console,wandb]' after `wandb login`.
# The thresholds are the paper's for max and mean together; fit them to the run with `holdfast.advise` on its records.
set -euo pipefail

NAME="${NAME:-trm_8x8}"
RUN_DIR="${SHARED:-$PWD}/runs/$NAME"
export TENSORBOARD_DIR="$RUN_DIR/tensorboard"
LOSS=actor_rollout_ref.actor.policy_loss

${RUN:-python3 -m verl.trainer.main_ppo} \
  trainer.v1.trainer_mode=holdfast_sync \
  $LOSS._target_=holdfast.integrations.verl.config.HoldfastLossConfig \
  $LOSS.loss_mode=holdfast \
  +$LOSS.objective=trm+sspo+kl_cov \
  +$LOSS.settings.delta=0.1 \
  +$LOSS.settings.delta_avg=0.002 \
  +$LOSS.baseline=accepted \
  +$LOSS.records="${RECORDS:-$RUN_DIR/rollouts}" \
  data.train_files="${TRAIN:-$PWD/train.parquet}" \
  data.val_files="${VALID:-$PWD/valid.parquet}" \
  data.train_batch_size=256 \
  data.max_prompt_length=2048 \
  data.max_response_length=30720 \
  data.filter_overlong_prompts=true \
  algorithm.adv_estimator=grpo \
  actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen3-8B}" \
  actor_rollout_ref.model.use_remove_padding=true \
  actor_rollout_ref.actor.strategy=fsdp2 \
  actor_rollout_ref.actor.optim.lr=1e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=128 \
  actor_rollout_ref.actor.use_dynamic_bsz=true \
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=32768 \
  actor_rollout_ref.actor.ulysses_sequence_parallel_size=2 \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
  actor_rollout_ref.rollout.n=16 \
  actor_rollout_ref.rollout.calculate_log_probs=true \
  trainer.nnodes=8 \
  trainer.n_gpus_per_node=8 \
  trainer.total_epochs=1 \
  trainer.save_freq=20 \
  trainer.max_actor_ckpt_to_keep=3 \
  trainer.test_freq=20 \
  trainer.default_local_dir="$RUN_DIR/checkpoints" \
  trainer.logger="${LOGGER:-[console,tensorboard]}" \
  trainer.project_name=holdfast \
  trainer.experiment_name="$NAME" \
  "$@"

"""A toy world for verl: character tokens, a two-layer Llama, 32 prompts and a reward for writing digits."""

import os
import string
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def build(folder: Path) -> None:
    """Write model, tokenizer and data into `folder`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = sorted(set(string.printable) - set("\t\r\x0b\x0c"))
    vocabulary = {token: number for number, token in enumerate(special + characters)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    rows = [
        {
            "data_source": "digits",
            "prompt": [{"role": "user", "content": f"{number}+{number}"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(2 * number)},
            "extra_info": {"index": number},
        }
        for number in range(32)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")


def digits(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **options: Any) -> float:
    """The share of digits in the answer."""
    return sum(character.isdigit() for character in solution_str) / max(len(solution_str), 1)


def environment(**extra: str) -> dict[str, str]:
    """Variables under which verl and its Ray workers run on this machine's CPU."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_USE_EXTERNAL_MODULES": "cpu.rollout",
        "OMP_NUM_THREADS": "1",
        "HYDRA_FULL_ERROR": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **extra,
    }


def overrides(folder: Path, run: Path, steps: int, ranks: int = 1, micro: int = 4) -> list[str]:
    """Hydra overrides of `main_ppo` for this world: 4 prompts of 4 samples a step, one update, float32."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    ray = "ray_kwargs.ray_init"
    precision = f"+{actor}.fsdp_config.mixed_precision"
    return [
        "trainer.device=cpu",
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.nnodes=1",
        "trainer.logger=[console,file]",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=4",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=False",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={run}/checkpoints",
        f"+{ray}.num_gpus={ranks}",
        f"{ray}.num_cpus=16",
        f"+{ray}.include_dashboard=False",
        f"+{ray}.object_store_memory=300000000",
        "algorithm.adv_estimator=grpo",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/train.parquet",
        "data.train_batch_size=4",
        "data.shuffle=False",
        "data.max_prompt_length=16",
        "data.max_response_length=12",
        "data.dataloader_num_workers=0",
        f"actor_rollout_ref.model.path={folder}/model",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        f"{actor}.strategy=fsdp2",
        f"{actor}.ppo_mini_batch_size=4",
        f"{actor}.ppo_micro_batch_size_per_gpu={micro}",
        f"{actor}.optim.lr=1e-3",
        f"{actor}.use_torch_compile=False",
        f"{precision}.param_dtype=fp32",
        f"{precision}.reduce_dtype=fp32",
        f"{precision}.buffer_dtype=fp32",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"{rollout}.name=holdfast_cpu",
        f"{rollout}.n=4",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.log_prob_micro_batch_size_per_gpu=4",
        f"{rollout}.agent.num_workers=1",
        f"{rollout}.calculate_log_probs=True",
        f"reward.custom_reward_function.path={HERE}/world.py",
        "reward.custom_reward_function.name=digits",
        "reward.num_workers=1",
    ]

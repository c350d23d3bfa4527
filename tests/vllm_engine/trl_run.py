"""Three steps of TRL with vLLM in its process, and a trust region on bounds: python trl_run.py MODEL OUT."""

import os
import sys

os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    # What torchrun sets; TRL takes the port that it is given for the engine in its process.
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": sys.argv[3],
}


def even_digits(completions: list[str], **others: object) -> list[float]:
    """The share of even digits."""
    return [sum(c in "02468" for c in text) / max(1, len(text)) for text in completions]


def main(model: str, folder: str) -> None:
    """Train, and leave records."""
    from datasets import Dataset
    from trl import GRPOConfig

    import holdfast
    from holdfast.integrations.trl import HoldfastGRPOTrainer

    trainer = HoldfastGRPOTrainer(
        model=model,
        reward_funcs=even_digits,
        args=GRPOConfig(
            output_dir=folder,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=64,
            vllm_gpu_memory_utilization=0.05,
            use_cpu=True,
            bf16=False,
            max_steps=3,
            num_generations=4,
            per_device_train_batch_size=8,
            max_completion_length=8,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{number}+1="} for number in range(8)]),
        objective=holdfast.preset("trm_max+dapo", detector="kl_lower", delta=5e-5),
        rollouts_every=1,
        top_logprobs=20,
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:3])

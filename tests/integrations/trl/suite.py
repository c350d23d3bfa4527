"""TRL's own tests of GRPOTrainer, with TRL's trainer and with ours: python suite.py CHECKOUT [pytest arguments].

CHECKOUT is a checkout of TRL at the installed release; nothing is fetched. Its tests want models and data sets of a
hub: stand-ins of the same architectures with random weights are made, and put where transformers looks for downloads.
Models without a stand-in (images) fail in both columns. Ours trains with the preset of each test's `loss_type`; a test
that sets what an objective decides otherwise is refused, which is shown as the reason. Exit 1 where a test passes with
TRL's trainer and fails with ours for any other reason.
"""

import copy
import os
import string
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

OWNER = "trl-internal-testing"
TEXTS = ["Beautiful is better than", "Explicit is", "Simple is better", "Complex", "Flat is better than", "Readability",
         "Special cases aren't", "Although", "Errors should never", "Unless", "In the face of", "There should be",
         "Now is better", "If the implementation", "Namespaces", "Sparse is", "Practicality beats"]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 4}  # fmt: skip
EXPERTS = SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2", SMALL),
    "tiny-Qwen3ForCausalLM": ("Qwen3", SMALL),
    "tiny-LlamaForCausalLM-3.2": ("Llama", SMALL),
    "tiny-MistralForCausalLM-0.2": ("Mistral", SMALL),
    "tiny-Cohere2ForCausalLM": ("Cohere2", SMALL),
    "tiny-Gemma2ForCausalLM": ("Gemma2", SMALL),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3Moe", EXPERTS),
    "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2", SMALL),
    "tiny-Qwen3ForSequenceClassification": ("Qwen3", SMALL),
    "tiny-LlamaForSequenceClassification-3.2": ("Llama", SMALL),
}


def make_models(hub: Path) -> None:
    """Stand-ins in the layout of a cache of downloads."""
    import torch
    import transformers

    from holdfast.rollout.models import character_tokenizer

    tokenizer = character_tokenizer("".join(c for c in string.printable if c not in "<>") + "<>")
    tokenizer.chat_template = TEMPLATE
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    for name, (family, sizes) in MODELS.items():
        torch.manual_seed(0)
        scores = {"num_labels": 1} if "Sequence" in name else {}
        kind = f"{family}For{'SequenceClassification' if scores else 'CausalLM'}"
        config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **sizes, **ids, **scores)
        folder = hub / f"models--{OWNER}--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0")
        getattr(transformers, kind)(config).save_pretrained(folder / "snapshots" / "0")
        tokenizer.save_pretrained(folder / "snapshots" / "0")


def pytest_configure() -> None:
    """As a plug-in of pytest (-p suite): data without a hub and, in the second column, our trainer."""
    import datasets

    load = datasets.load_dataset

    def local(path, name=None, *, split=None, streaming=False, **others):
        if path != f"{OWNER}/zen":
            return load(path, name, split=split, streaming=streaming, **others)
        chat = "conversational" in (name or "")
        rows = [{"prompt": [{"role": "user", "content": text}] if chat else text} for text in TEXTS]
        parts = datasets.DatasetDict(
            {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:4])}
        )
        if streaming:
            parts = datasets.IterableDatasetDict({k: v.to_iterable_dataset() for k, v in parts.items()})
        return parts if split is None else parts[split]

    datasets.load_dataset = local
    if os.environ.get("HOLDFAST_SUITE") == "ours":
        import trl

        trl.GRPOTrainer = ours()


def ours() -> type:
    """Our trainer with the preset of a test's loss_type."""
    from trl import GRPOConfig

    import holdfast
    from holdfast.integrations.trl import HoldfastGRPOTrainer
    from holdfast.integrations.trl.config import DEFAULTS

    class Ours(HoldfastGRPOTrainer):
        def __init__(self, model, reward_funcs=None, args=None, train_dataset=None, *others, **options):
            args = copy.copy(args) if args is not None else GRPOConfig("out", use_cpu=True, bf16=False)
            objective = args.loss_type
            if objective == "bnpo":
                objective = holdfast.preset("dapo", high=0.2)
            args.loss_type = DEFAULTS["loss_type"]
            super().__init__(
                model, reward_funcs, args, train_dataset, *others, objective=objective, rollouts_every=0, **options
            )

    return Ours


def column(checkout: Path, hub: Path, which: str, arguments: list[str]) -> dict[str, str]:
    """Test -> "passed", "skipped" or the first line of its failure."""
    report = hub / f"{which}.xml"
    environment = os.environ | {
        "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "HOLDFAST_SUITE": which, "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "suite",
        "-q",
        f"--junitxml={report}",
        "tests/test_grpo_trainer.py",
    ]
    subprocess.run([*command, *arguments], cwd=checkout, env=environment, check=False)
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        failure = next((node for node in case if node.tag in ("failure", "error", "skipped")), None)
        said = "passed" if failure is None else "skipped" if failure.tag == "skipped" else failure.get("message", "")
        found[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = said.split("\n")[0][:160]
    return found


def main(checkout: str, *arguments: str) -> int:
    """Both columns, the tests that differ with their reasons, and the counts."""
    with tempfile.TemporaryDirectory() as folder:
        hub = Path(folder)
        make_models(hub)
        theirs, own = (column(Path(checkout), hub, which, list(arguments)) for which in ("trl", "ours"))
    passing = [name for name, said in theirs.items() if said == "passed"]
    different = {name: own.get(name, "not run") for name in passing if own.get(name) != "passed"}
    for name, said in different.items():
        print(f"{'refused' if 'ConfigError' in said else 'DIFFERS'}  {name}: {said}")
    print(
        f"{len(passing)} of {len(theirs)} pass with TRL's trainer, {len(passing) - len(different)} of those with ours"
    )
    return int(any("ConfigError" not in said for said in different.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

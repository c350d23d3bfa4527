"""What the engine's likeliest tokens prove, from a generator that reports them as TRL 1.16 has vLLM do it."""

import math
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

import holdfast
from holdfast import ConfigError, DataError
from holdfast.integrations.trl import HoldfastGRPOTrainer, top_k
from holdfast.rollout.embedded.embedded import EmbeddedEngine
from holdfast.rollout.engine import Sampling
from holdfast.rollout.store import read_rollouts
from integrations.trl import runs

pytestmark = pytest.mark.filterwarnings("ignore")


class Generation:
    """In the place of TRL's VLLMGeneration: sorted by rank, the sampled token last where it is not among the K."""

    logprobs = 0

    def __init__(self, base, **settings):
        self.engine = EmbeddedEngine(
            base, eos_token_id=runs.TOKENIZER.eos_token_id, pad_token_id=runs.TOKENIZER.pad_token_id, **settings
        )
        self.seen, self.whole = 0, {}

    def sync_weights(self):
        """Never: it stays with the first weights."""

    def generate(self, prompts, images=None, num_generations=1, profiler=None):
        numbers = range(self.seen, self.seen + len(prompts))
        self.seen += len(prompts)
        found = self.engine.generate(
            prompts, Sampling(max_tokens=8), seed=0, sequence_ids=numbers, return_distributions=True, return_top=99
        )
        self.whole |= {(*p, *c.token_ids): c.distributions for p, c in zip(prompts, found, strict=True)}
        return prompts, [list(c.token_ids) for c in found], *zip(*map(self._report, found), strict=True)

    def _report(self, completion):
        ids, values = [], []
        for token, row, own in zip(completion.token_ids, completion.top_ids.tolist(), completion.top_logprobs.tolist(),
                                   strict=True):  # fmt: skip
            kept = [place for place, i in enumerate(row) if place < self.logprobs or i == token]
            ids.append([row[place] for place in kept])
            values.append([own[place] for place in kept])
        return values, ids


def trainer(folder, count=4, objective="grpo", settings=None, base=None, **options):
    base = base or runs.model()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(
                8 if parameter.ndim == 2 else 1
            )  # far from uniform, so that the likeliest is not the sampled
    generation = Generation(base, precision="int8")
    made = HoldfastGRPOTrainer(
        base, runs.small_digits, runs.config(folder, max_steps=2, **settings or {}), runs.PROMPTS, None, runs.TOKENIZER,
        objective=objective, rollout_func=lambda prompts, trainer: None, top_logprobs=count, **options,
    )  # fmt: skip
    made.rollout_func = None
    made.use_vllm, made._last_loaded_step = True, 0
    made.vllm_generation = generation
    top_k.report_likeliest(made.vllm_generation, count)
    return made


def recorded(folder):
    return [r for file in sorted(runs.recorded(folder).glob("*")) for r in read_rollouts(file)]


def test_trl_itself_would_take_the_likeliest_for_the_sampled_one():
    generation = Generation(runs.model(), precision="float32")
    generation.logprobs = 4
    _, completions, logprobs, ids = generation.generate([[3, 4]] * 8)
    first = [row[0] != token for own, found in zip(completions, ids, strict=True)
             for token, row in zip(own, found, strict=True)]  # fmt: skip
    assert any(first), "the first of the list is not the sampled token"
    top_k.report_likeliest(generation, 4)
    _, completions, logprobs, _ = generation.generate([[3, 4]] * 8)
    for tokens, own in zip(completions, logprobs, strict=True):
        whole = generation.whole[(3, 4, *tokens)]
        expected = whole.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor([one[0] for one in own]), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_bounds_are_those_of_whole_distributions(temperature, tmp_path):
    """With all of the vocabulary but one token, what is proven is nearly exact; it never crosses the exact value."""
    count = len(runs.TOKENIZER) - 1
    base = runs.model()
    run = trainer(tmp_path, count, base=base, settings={"learning_rate": 0.0, "temperature": temperature})
    run.train()
    records = recorded(tmp_path)
    assert len(records) == 16
    largest = 0.0
    for record in records:
        ids = torch.tensor([record.prompt_ids + record.response_ids])
        with torch.no_grad():
            logits = base(ids).logits[0, len(record.prompt_ids) - 1 : -1].float() / temperature
        whole = run.vllm_generation.whole[record.prompt_ids + record.response_ids]
        kl = (whole.exp() * (whole - logits.log_softmax(-1))).sum(-1)
        tv = (whole.exp() - logits.softmax(-1)).abs().sum(-1) / 2
        low, tv_low, tv_high = (torch.tensor(getattr(record, n)) for n in ("kl_lower", "tv_lower", "tv_upper"))
        assert (low <= kl + 1e-6).all() and (tv_low <= tv + 1e-6).all() and (tv <= tv_high + 1e-6).all()
        torch.testing.assert_close(low, kl, rtol=0.02, atol=1e-5)
        torch.testing.assert_close(tv_low, tv, rtol=0.02, atol=1e-5)
        largest = max(largest, float(kl.max()))
        own = whole.gather(1, torch.tensor(record.response_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(record.rollout_logprobs), own)
    assert largest > 1e-3, "the engine differs from the trainer"


def test_few_tokens_prove_less_and_trm_trains_on_it(tmp_path):
    objective = holdfast.preset("trm_max+grpo", detector="kl_lower", delta=0.1)
    seen = runs.Gradients()
    run = trainer(tmp_path, 3, objective, callbacks=[seen])
    run.train()
    rejected = runs.logged(run, "trust_region/rejected_sequences")
    records = recorded(tmp_path)
    assert 0 < sum(rejected) / len(rejected) < 1
    for record in records:
        # Rounded down on disk, so only clear cases can be judged from there.
        if max(record.kl_lower) > 0.1:
            assert not any(record.trust_mask)
        assert all(low <= high for low, high in zip(record.tv_lower, record.tv_upper, strict=True))
    highest = runs.logged(run, "trust_region/kl_lower_max")
    assert len(highest) == 2 and max(max(r.kl_lower) for r in records) <= max(highest)
    assert runs.logged(run, "trust_region/tv_upper_mean")[0] >= runs.logged(run, "trust_region/tv_lower_mean")[0]
    assert all(torch.isfinite(gradient).all() for gradient in seen.steps)


@pytest.mark.parametrize("row", ["trm_token", "trm_prefix"])
def test_responses_are_kept_in_part_by_upper_bounds(row, tmp_path):
    run = trainer(tmp_path, 8, holdfast.preset(f"{row}+grpo", detector="tv_upper", delta=0.5))
    run.train()
    records = recorded(tmp_path)
    assert any(any(r.trust_mask) and not all(r.trust_mask) for r in records)
    for record in records:
        # Rounded up on disk: what is above there may have been at the threshold.
        inside = [high <= 0.5 for high in record.tv_upper]
        first = inside.index(False) if False in inside else len(inside)
        proven = inside if row == "trm_token" else [place < first for place in range(len(inside))]
        assert all(kept for kept, sure in zip(record.trust_mask, proven, strict=True) if sure)


def test_micro_batches_and_lora_keep_reports_with_their_sequences(tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    objective = holdfast.preset("trm_max+grpo", detector="tv_upper", delta=0.9)
    tables = []
    for size, count in ((8, 1), (2, 4)):
        folder = tmp_path / str(size)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count, "learning_rate": 0.0}
        trainer(folder, 3, objective, settings, peft_config=adapter).train()
        tables.append({r.sequence_id: (r.response_ids, r.kl_lower, r.tv_upper) for r in recorded(folder)})
    assert tables[0] == tables[1] and len(tables[0]) == 16


def reporting(cut=None):
    """A rollout function that reports its two likeliest tokens, or a wrong report of them."""

    def rollout(prompts, trainer):
        each = [[3, 4, 5, runs.TOKENIZER.eos_token_id] for _ in prompts]
        ids = [[[7, token] if token != 7 else [7, 3] for token in row] for row in each]
        logprobs = [[[-0.5, -1.5] for _ in row] for row in each]
        output = {"prompt_ids": [runs.TOKENIZER(p)["input_ids"] for p in prompts], "completion_ids": each}
        output |= {"logprobs": logprobs, "logprob_token_ids": ids}
        return cut(output) if cut else output

    return rollout


def played(folder, rollout):
    return HoldfastGRPOTrainer(
        runs.model(), runs.small_digits, runs.config(folder, max_steps=1), runs.PROMPTS, None, runs.TOKENIZER,
        objective=holdfast.preset("trm_max+grpo", delta=9.0), rollout_func=rollout, top_logprobs=2,
    )  # fmt: skip


def test_rollout_function_that_reports_ids(tmp_path):
    run = played(tmp_path, reporting())
    run.train()
    for record in recorded(tmp_path):
        assert record.rollout_logprobs == pytest.approx([-1.5] * 4), "the sampled token is the second of the list"
        # p = (e^-.5, e^-1.5): .17 is left; against a nearly uniform policy the bounds are far from both ends.
        assert all(0.1 < low < high for low, high in zip(record.tv_lower, record.tv_upper, strict=True))


def test_reports_that_cannot_be_used(tmp_path):
    def without_ids(output):
        return {k: v for k, v in output.items() if k != "logprob_token_ids"} | {"logprobs": [[-1.0] * 4] * 8}

    with pytest.raises(DataError, match="top_logprobs = 2, but this generation reports no likeliest tokens"):
        played(tmp_path, reporting(without_ids)).train()
    other = [[[6, 7]] * 4] * 8
    with pytest.raises(DataError, match=r"completion 0, token 0: the engine sampled token 3 and reported \[6, 7\]"):
        played(tmp_path, reporting(lambda output: output | {"logprob_token_ids": other})).train()


def test_head_that_does_something_else_is_refused(tmp_path, monkeypatch):
    head = top_k._head
    monkeypatch.setattr(top_k, "_head", lambda model, dtype: head(model, dtype).__class__(
        model.get_output_embeddings().weight.detach(), scale=1.5))  # fmt: skip
    with pytest.raises(ConfigError, match=r"log-probabilities .* nats from those that TRL trains on"):
        played(tmp_path, reporting()).train()


def test_sharded_heads_are_refused():
    sharded = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=object()))
    with pytest.raises(ConfigError, match="shard the LM head"):
        top_k.refuse_sharded(sharded)
    stage = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))
    with pytest.raises(ConfigError, match="ZeRO-3"):
        top_k.refuse_sharded(stage)


def test_tokens_of_tools_have_no_report():
    one = top_k.Sampled.of(5, [4, 5], [-0.5, None], "here")
    assert math.isnan(one)
    ids, values = top_k.tables([[one, 0.0]], 3, 4, "cpu")
    assert ids.tolist() == [[[4, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]]
    assert values[0, 0, 0] == -0.5 and (values[0, 1:] == -math.inf).all() and (values[0, 0, 1:] == -math.inf).all()


def test_trl_keeps_what_it_is_given(tmp_path):
    """TRL keeps the first of each list: with the sampled one in front that is the sampled one, and its report."""
    run = trainer(tmp_path, 3)
    completions, logprobs = run._generate_single_turn([[3, 4]] * 4, None, {}, 4)
    assert GRPOTrainer._generate_single_turn is type(run)._generate_single_turn
    assert all(isinstance(one, top_k.Sampled) for row in logprobs for one in row)
    assert [len(row) for row in completions] == [len(row) for row in logprobs]

"""Prompts, rewards and tensors of one step."""

import hashlib
from dataclasses import dataclass

import pytest
import torch

from holdfast.errors import ConfigError, DataError
from holdfast.rollout.models import character_tokenizer
from holdfast.tasks import Problem, get_task
from holdfast.train.sampling.data import PromptSource, assemble, pack
from holdfast.train.sampling.episodes import Episode
from holdfast.train.settings.seeds import derive_seed

PROBLEM = Problem("1+1=", "2", None, "sums")


def problem(prompt, **more):
    return Problem(prompt, "2", None, "sums", **more)


@dataclass(frozen=True)
class Mixed:
    """Prompts of 1, 5 and 9 characters in turn."""

    name: str = "mixed"
    alphabet: str = "1+="

    def problems(self, seed, count, split):
        return [Problem("1" * (1 + 4 * ((seed + i) % 3)), "1", None, self.name) for i in range(count)]

    def reward(self, problem, response):
        return float(response == problem.answer)

    def sloppy(self, problem, seed, error_rate):
        return "1"


def source(max_tokens):
    return PromptSource(Mixed(), character_tokenizer("1+="), max_tokens=max_tokens, chat=False)


def test_prompts_that_do_not_fit_are_replaced():
    prompts = source(6).draw(0, 5, "train")
    assert len(prompts) == 5 and max(map(len, prompts.token_ids)) == 6
    assert [len(ids) for ids in prompts.token_ids] == [len(p.prompt) + 1 for p in prompts.problems]


def test_no_prompt_fits():
    with pytest.raises(DataError, match=r"no prompt of task 'mixed' fits: the shortest has 2 tokens, at most 1"):
        source(1).draw(0, 5, "train")


def test_groups_are_repeats_of_a_prompt():
    prompts = source(10).draw(0, 2, "train").repeat(3)
    assert prompts.token_ids[0] == prompts.token_ids[2] != prompts.token_ids[3] == prompts.token_ids[5]


def test_prompts_begin_with_bos_and_do_not_end_with_eos():
    tokenizer = character_tokenizer("1+=")
    prompts = source(10)
    assert prompts.encode(problem("1=")) == (tokenizer.bos_token_id, *tokenizer.encode("1=", add_special_tokens=False))
    ids, sampled = prompts.encode_solution(PROBLEM, "1+1")
    assert ids[-1] == tokenizer.eos_token_id and prompts.decode(ids) == "1+1" and sampled == (True,) * 4


def test_an_end_token_put_after_prompts_by_a_tokenizer_is_removed():
    from tokenizers.processors import TemplateProcessing

    tokenizer = character_tokenizer("1+=")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    prompts = PromptSource(Mixed(), tokenizer, max_tokens=9, chat=False)
    assert prompts.encode(problem("1=")) == tuple(tokenizer.encode("1=", add_special_tokens=False))


def test_chat_template_wraps_the_prompt():
    tokenizer = character_tokenizer("1+=")
    tokenizer.chat_template = (
        "{% for m in messages %}={{ m.content }}={% endfor %}{% if add_generation_prompt %}+{% endif %}"
    )
    prompts = PromptSource(Mixed(), tokenizer, max_tokens=9, chat=True)
    assert prompts.encode(problem("1")) == tuple(tokenizer.encode("=1=+", add_special_tokens=False))


def test_a_conversation_needs_the_chat_template_and_is_shown_whole():
    tokenizer = character_tokenizer("1+=")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '+' if m.role == 'system' else '=' }}{{ m.content }}{% endfor %}"
    )
    talk = problem("1", messages=(("system", "11"), ("user", "1")))
    prompts = PromptSource(Mixed(), tokenizer, max_tokens=9, chat=True)
    assert prompts.encode(talk) == tuple(tokenizer.encode("+11=1", add_special_tokens=False))
    with pytest.raises(
        ConfigError, match=r"model\.chat = false, and the prompts are chat messages .* set model\.chat ="
    ):
        source(9).encode(talk)


def test_tensors_of_a_step():
    prompts = source(10).draw(1, 1, "train").repeat(2)  # "11111": six tokens with <bos>
    (one, _), (two, _) = (source(10).encode_solution(PROBLEM, text) for text in ("1", "1+"))
    tool = (True, False, True, True)
    episodes = [
        Episode(40, prompts.problems[0], prompts.token_ids[0], one, (True,) * 2, (3, 3), (0, 0),
                torch.tensor([-0.5, -0.25]), torch.zeros(2, 8), torch.ones(2, 3).int(), torch.zeros(2, 3),
                finish_reason="stop"),
        Episode(41, prompts.problems[0], prompts.token_ids[0], (*two, one[0]), tool, (2, 2, 3, 3), (0, 0, 1, 1),
                torch.tensor([-1.0, -2.0, -3.0]), torch.zeros(3, 8), torch.ones(3, 3).int(), torch.zeros(3, 3),
                finish_reason="length"),
    ]  # fmt: skip
    rollouts = assemble(source(10), episodes, [1.0, 0.0], 2)
    assert rollouts.texts == ("1", "1+1") and rollouts.rewards.tolist() == [1.0, 0.0]
    # The second response has a tool's token: it is context, it has no log-probability of its own, it is not counted.
    assert rollouts.rollout_logprobs.tolist() == [[-0.5, -0.25, 0.0, 0.0], [-1.0, 0.0, -2.0, -3.0]]
    assert rollouts.sequences.response_mask.tolist() == [[True, True, False, False], list(tool)]
    assert rollouts.turn_ids.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert rollouts.versions.tolist() == [[3, 3, 0, 0], [2, 2, 3, 3]]
    assert rollouts.group_ids.tolist() == [0, 0] and rollouts.sequence_ids.tolist() == [40, 41]
    assert rollouts.tokens == 5 and [len(d) for d in rollouts.sequences.distributions] == [2, 3]
    assert [i.shape for i in rollouts.sequences.top_ids] == [p.shape for p in rollouts.sequences.top_logprobs] != []
    assert rollouts.sequences.lengths.tolist() == [8, 10]
    assert rollouts.sequences.input_ids.tolist()[0] == [*prompts.token_ids[0], *one, 0, 0]


def test_packing_pads_on_the_right():
    packed = pack([(1, 2), (3,)], [(4,), (5, 6, 7)], pad=9)
    assert packed.input_ids.tolist() == [[1, 2, 4, 9], [3, 5, 6, 7]]
    assert packed.prompt_lengths.tolist() == [2, 1] and packed.lengths.tolist() == [3, 4]


def test_seeds_differ_by_purpose_and_are_fixed():
    seeds = {derive_seed(a, b, c) for a in range(3) for b in ("train", "eval") for c in range(50)}
    assert len(seeds) == 300
    # Pinned to its definition, so that old runs can be resumed and repeated.

    digest = hashlib.sha256(b"0/train/1").digest()
    assert derive_seed(0, "train", 1) == int.from_bytes(digest[:4], "big") % 2**31


def test_train_and_held_out_problems_are_disjoint():
    task = get_task("ledger", entries=2)
    prompts = PromptSource(task, character_tokenizer(task.alphabet), max_tokens=50, chat=False)
    train = {p.prompt for p in prompts.draw(1, 60, "train").problems}
    held_out = {p.prompt for p in prompts.draw(1, 10, "eval").problems}
    assert not train & held_out

"""Writing responses on: in pieces, in turns, and that neither changes what an engine would have written anyway."""

import itertools
from dataclasses import replace

import pytest
import torch

from holdfast.errors import EngineError
from holdfast.rollout.engine import Completion, Sampling
from holdfast.rollout.support import support_rows
from holdfast.tasks.base import Problem
from holdfast.train.sampling.episodes import Episode, Writing, _cut

END, PROBLEM = 2, Problem("?", "", None, "test")


class Counting:
    """Token i of a whole text is 10 + i, ended by END after `length` tokens of each turn; log p = -token / 100.

    The distribution that a token is drawn from is filled with the token; the K likeliest are it and those after it.
    """

    def __init__(self, length):
        self.length, self.policy_version, self.asked = length, 0, []

    def generate(
        self, prompts, sampling, *, seed, sequence_ids, return_distributions=False, return_top=0, return_support=False
    ):
        self.asked.append((seed, tuple(sequence_ids), sampling.max_tokens))
        found = [self._one(prompt, sampling.max_tokens, return_distributions) for prompt in prompts]
        return [_with_top(completion, return_top) for completion in found] if return_top else found

    def _one(self, prompt, room, distributions):
        turn = len(prompt) - max([-1, *(i for i, t in enumerate(prompt) if t in (1, 7))]) - 1
        tokens = (*(10 + i for i in range(turn, self.length)), END)
        stop = len(tokens) <= room
        tokens = tokens[:room]
        logprobs = -torch.tensor(tokens).float() / 100
        full = torch.tensor(tokens).float()[:, None].expand(-1, 30) if distributions else None
        return Completion(tokens, logprobs, "stop" if stop else "length", self.policy_version, full)

    def sync(self, model, version):
        self.policy_version = version

    def close(self): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def _with_top(completion, count):
    ids = torch.tensor(completion.token_ids)[:, None] + torch.arange(count)
    return replace(completion, top_ids=ids, top_logprobs=-ids.double())


def start(*ids):
    return [Episode(i, PROBLEM, (1,)) for i in ids or (0,)]


def plain(length, budget, most=100, **options):
    engine = Counting(length)
    writing = Writing(Sampling(max_tokens=most), **options)
    episodes = start()
    for version in itertools.count():
        engine.sync(None, version)
        episodes = writing.advance(engine, episodes, budget=budget, seed=lambda call: call)
        if episodes[0].finish_reason is not None:
            return episodes[0], engine
        assert sum(episodes[0].sampled) == budget * (version + 1)
    raise AssertionError


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 8, 100])
def test_pieces_join_to_the_whole_and_each_token_knows_its_weights(budget):
    episode, _ = plain(7, budget, distributions=True, top=3)
    assert episode.token_ids == (*range(10, 17), END) and episode.finish_reason == "stop"
    assert torch.allclose(episode.logprobs, -torch.tensor(episode.token_ids).float() / 100)
    assert episode.versions == tuple(i // budget for i in range(8))
    assert tuple(episode.distributions[:, 0].tolist()) == episode.token_ids
    assert episode.top_ids.tolist() == [[token, token + 1, token + 2] for token in episode.token_ids]
    assert torch.equal(episode.top_logprobs, -episode.top_ids.float())
    assert (episode.top_ids.dtype, episode.top_logprobs.dtype) == (torch.int32, torch.float32), (
        "as small as they can be"
    )
    assert episode.turn_ids == (0,) * 8 and all(episode.sampled)


@pytest.mark.parametrize(("most", "reason", "count"), [(8, "stop", 8), (7, "length", 7), (5, "length", 5)])
@pytest.mark.parametrize("budget", [2, 3, 100])
def test_the_longest_response_is_that_of_one_piece(budget, most, reason, count):
    episode, _ = plain(7, budget, most)
    assert episode.finish_reason == reason and len(episode.token_ids) == count


def test_what_an_engine_writes_beyond_its_room_is_cut():
    class Generous(Counting):
        def _one(self, prompt, room, distributions):
            return super()._one(prompt, 100, distributions)

    episode = Writing(Sampling(max_tokens=5), distributions=True, top=2).advance(
        Generous(7), start(), budget=3, seed=lambda call: 0
    )[0]
    assert episode.token_ids == (10, 11, 12) and episode.finish_reason is None
    assert torch.allclose(episode.logprobs, -torch.tensor([10.0, 11.0, 12.0]) / 100)
    assert episode.distributions[:, 0].tolist() == [10, 11, 12]
    assert episode.top_ids.tolist() == [[10, 11], [11, 12], [12, 13]] and len(episode.top_logprobs) == 3


def talk(problem, turn):
    """The environment answers "7 7" to the first two turns."""
    talk.heard.append(tuple(turn))
    return (7, 7) if len(talk.heard) < 3 else None


@pytest.mark.parametrize("budget", [1, 2, 4, 5, 100])
def test_turns_whatever_the_pieces(budget):
    """The policy writes 12 tokens and may write 12: what the environment says does not count."""
    talk.heard = []
    episode, _ = plain(3, budget, 12, reply=talk, max_turns=9)
    turn = (10, 11, 12, END)
    assert episode.token_ids == (*turn, 7, 7, *turn, 7, 7, *turn) and talk.heard == [turn] * 3
    assert episode.sampled == (True,) * 4 + (False, False) + (True,) * 4 + (False, False) + (True,) * 4
    assert episode.turn_ids == (0,) * 6 + (1,) * 6 + (2,) * 4 and episode.turn == 2
    # An answer counts as written under the weights of the turn that it answers.
    own = [i // budget for i in range(12)]
    assert episode.versions == (*own[:4], own[3], own[3], *own[4:8], own[7], own[7], *own[8:])
    assert episode.sampled_ids == turn * 3 and len(episode.logprobs) == 12 and episode.finish_reason == "stop"


def test_the_last_turn_is_not_answered():
    talk.heard = []
    episode, _ = plain(3, 100, reply=talk, max_turns=2)
    assert episode.finish_reason == "turns" and episode.token_ids[-1] == END and episode.turn == 1


def test_a_conversation_ends_where_its_tokens_do():
    """Two turns of four tokens are allowed and used up: there is no room to answer into."""
    talk.heard = []
    episode, _ = plain(3, 100, 8, reply=talk, max_turns=9)
    assert episode.finish_reason == "length" and sum(episode.sampled) == 8 and episode.token_ids[-1] == END


def test_only_unfinished_responses_are_asked_for_and_every_request_has_its_seed():
    engine = Counting(2)
    episodes = start(5, 6)
    done = Writing(Sampling(max_tokens=9)).advance(engine, episodes[:1], budget=9, seed=lambda call: 40 + call)
    Writing(Sampling(max_tokens=9), reply=lambda problem, turn: (7,), max_turns=3).advance(
        engine, [done[0], episodes[1]], budget=9, seed=lambda call: 40 + call
    )
    assert engine.asked == [(40, (5,), 9), (40, (6,), 9), (41, (6,), 6), (42, (6,), 3)]


def test_one_request_goes_out_for_short_and_long_rooms_alike():
    engine = Counting(20)
    writing = Writing(Sampling(max_tokens=9))
    (begun,) = writing.advance(engine, start(5), budget=5, seed=lambda call: 0)
    episodes = writing.advance(engine, [begun, *start(6)], budget=9, seed=lambda call: 0)
    assert engine.asked == [(0, (5,), 5), (0, (5, 6), 9)]
    assert [len(episode.token_ids) for episode in episodes] == [9, 9]


@pytest.mark.parametrize(
    ("part", "count", "words"),
    [
        ("logprobs", -1, "gave 7 log-probabilities for 8 tokens"),
        ("logprobs", 1, "gave 9 log-probabilities for 8 tokens"),
        ("distributions", -1, "gave 7 distributions for 8 tokens"),
        ("distributions", 1, "gave 9 distributions for 8 tokens"),
    ],
)
def test_numbers_for_another_count_of_tokens_are_refused(part, count, words):
    class Careless(Counting):
        def _one(self, prompt, room, distributions):
            whole = super()._one(prompt, room, distributions)
            numbers = getattr(whole, part)
            # Past the check of types that only tests have.
            object.__setattr__(whole, part, torch.cat([numbers, numbers])[: 8 + count])
            return whole

    with pytest.raises(EngineError, match=words):
        Writing(Sampling(max_tokens=50), distributions=True).advance(
            Careless(7), start(), budget=9, seed=lambda call: 0
        )


@pytest.mark.parametrize(
    ("tokens", "logprobs", "words"),
    [
        ((10, 11), (-1.0, -200.0), "Odd, sequence 7: log-probability -200 at token 1: .*between -80 and 0"),
        ((10, 11), (0.5, -1.0), "sequence 7: log-probability 0.5 at token 0"),
        ((10, 11), (-1.0, float("nan")), "sequence 7: log-probability nan at token 1"),
        ((10, -1), (-1.0, -1.0), "Odd, sequence 7: token 1 is -1, which is no token id"),
        (None, None, "Odd gave 0 responses to 1 requests"),
    ],
)
def test_what_cannot_have_been_sampled_is_named(tokens, logprobs, words):
    class Odd(Counting):
        def generate(self, prompts, sampling, **options):
            return [] if tokens is None else [Completion(tokens, torch.tensor(logprobs), "stop", 0)]

    with pytest.raises(EngineError, match=words):
        Writing(Sampling(max_tokens=9)).advance(Odd(1), start(7), budget=9, seed=lambda call: call)


class Masked(Counting):
    """Draws token t from the tokens t to t + n, n the number of the call from 0."""

    def generate(self, prompts, sampling, *, return_support=False, **others):
        found = super().generate(prompts, sampling, **others)
        assert return_support
        return [self.masked(completion, len(self.asked)) for completion in found]

    def masked(self, completion, wide):
        ids, sizes = support_rows([range(token, token + wide) for token in completion.token_ids])
        return replace(completion, support_ids=ids, support_sizes=sizes)


def test_sampling_masks_of_pieces_are_joined_and_cut_with_their_tokens():
    writing = Writing(Sampling(max_tokens=5), support=True)
    first = writing.advance(engine := Masked(9), start(), budget=2, seed=int)
    (episode,) = writing.advance(engine, first, budget=3, seed=int)
    assert episode.token_ids == (10, 11, 12, 13, 14)
    assert episode.support_ids.tolist() == [10, 11, 12, 13, 13, 14, 14, 15]
    assert episode.support_sizes.tolist() == [1, 1, 2, 2, 2]
    cut = _cut(engine.masked(Completion((5, 6, 7), torch.zeros(3), "stop", 0), 2), 2)
    assert (cut.support_ids.tolist(), cut.support_sizes.tolist()) == ([5, 6, 6, 7], [2, 2])


def test_a_token_that_its_mask_does_not_name_is_an_error():
    engine = Masked(9)
    engine.masked = lambda completion, wide: Masked.masked(engine, replace(completion, token_ids=(10, 12, 12)), wide)
    plain = engine.generate

    def wrong(*args, **options):
        return [replace(completion, token_ids=(10, 11, 12)) for completion in plain(*args, **options)]

    engine.generate = wrong
    with pytest.raises(EngineError, match=r"sequence 0: token 1 is 11, .* drawn from 1 others: its sampling mask"):
        Writing(Sampling(max_tokens=3), support=True).advance(engine, start(), budget=3, seed=int)


class Routed(Counting):
    """Every token that is read goes to the expert with the number of the call."""

    def generate(self, prompts, sampling, *, return_support=False, **others):
        found = super().generate(prompts, sampling, **others)
        read = [len(prompt) + len(c.token_ids) - 1 for prompt, c in zip(prompts, found, strict=True)]
        call = len(self.asked)
        return [replace(c, experts=torch.full((n, 2, 1), call)) for c, n in zip(found, read, strict=True)]


def test_each_piece_brings_the_experts_of_what_it_read_first():
    """A prompt of one token, two drawn: two were read. Two more are drawn: two more were read."""
    engine, writing = Routed(9), Writing(Sampling(max_tokens=5))
    first = writing.advance(engine, start(), budget=2, seed=int)
    (episode,) = writing.advance(engine, first, budget=2, seed=int)
    assert episode.experts[:, 0, 0].tolist() == [1, 1, 2, 2] and episode.experts.shape == (4, 2, 1)

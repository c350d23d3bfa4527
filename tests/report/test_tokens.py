import dataclasses
import math

import pytest

from holdfast.report.tokens import log_ratios, masked_tokens, token_key, token_view, verdict, worst_position
from holdfast.types import Rollout

# log ratios: 0, -0.02, +0.5, -2, missing
ROLLOUT = Rollout(
    prompt_ids=(1,),
    response_ids=(10, 11, 12, 13, 14),
    rollout_logprobs=(-1.0, -1.0, -1.0, -1.0, math.nan),
    trainer_logprobs=(-1.0, -1.02, -0.5, -3.0, -1.0),
    response_mask=(True, True, True, True, False),
    trust_mask=(True, True, True, False, False),
    kl_exact=(0.0, 1e-4, 0.1, 1.5, 0.0),
    token_texts=("a", " b", "c\n", "<b>", "tool"),
    mask_reason="token mask: KL 1.5 > 0.3",
    reward=0.0,
    extra={"answer": "<42>"},
)


def with_(**changes):
    return dataclasses.replace(ROLLOUT, **changes)


def test_log_ratios_and_the_worst_of_them():
    assert log_ratios(ROLLOUT)[:4] == pytest.approx([0, -0.02, 0.5, -2.0])
    assert log_ratios(ROLLOUT)[4] is None
    assert worst_position(ROLLOUT) == (3, pytest.approx(-2.0))
    assert worst_position(with_(trainer_logprobs=None)) is None


def test_verdict_counts_only_the_policys_own_tokens():
    assert masked_tokens(ROLLOUT) == 1
    assert verdict(ROLLOUT) == ("partly masked", "1 of 4 tokens were masked by token mask: KL 1.5 > 0.3")
    assert verdict(with_(trust_mask=(True,) * 4 + (False,)))[0] == "accepted"
    assert verdict(with_(trust_mask=(False,) * 5))[0] == "rejected"
    assert "reason was not recorded" in verdict(with_(mask_reason=None))[1]
    assert verdict(with_(trust_mask=None)) == ("no verdict", "no trust mask was recorded")
    assert verdict(with_(response_mask=(False,) * 5))[0] == "no verdict"


def test_tokens_are_coloured_by_size_and_sign(parse):
    seen = parse(token_view(ROLLOUT, heading="H"))
    classes = [a.get("class", "") for a in seen.all("span") if "data-tip" in a]
    # |0| < .01; .02 in [.01, .03) negative; .5 in [.3, 1) positive; 2 >= 1 negative and masked; not its own
    assert classes == ["", "n1", "p4", "n5 out", "given"]


def test_every_token_carries_its_numbers(parse):
    tips = [
        (a["data-at"], a["data-tip"]) for a in parse(token_view(ROLLOUT, heading="H")).all("span") if "data-tip" in a
    ]
    assert tips[3] == ("4", "−1|−3|−2|1.5|masked")
    assert tips[4] == ("5", "–|−1|–|0|not the policy's own")


def test_a_lower_bound_of_kl_is_not_called_exact(parse):
    bounds = {"kl_lower": (0.0, 0.0, 0.25, 0.5, 0.0), "tv_lower": (0.0,) * 5, "tv_upper": (1.0,) * 5}
    view = token_view(with_(kl_exact=None, **bounds), heading="H")
    assert [a["data-tip"] for a in parse(view).all("span") if "data-tip" in a][3] == "−1|−3|−2|0.5|masked"
    assert "|KL at least|mask" in view and "largest KL at least 0.5" in parse(view).text and "exact KL" not in view
    both = token_view(with_(**bounds), heading="H")
    assert "|exact KL|mask" in both and "largest exact KL 1.5" in parse(both).text


def test_token_text_cannot_become_markup(parse):
    hostile = '</span><script>alert(1)</script>"onload="x'
    view = token_view(
        with_(token_texts=("a", hostile, "\u202eb", "d", "e"), prompt_text=hostile, mask_reason=hostile),
        heading=hostile,
    )
    seen = parse(view)
    assert seen.all("script") == []
    assert "\u202e" not in view
    assert seen.text.count("<script>alert(1)</script>") >= 4


def test_line_breaks_stay_and_pieces_become_blanks(parse):
    view = token_view(with_(token_texts=("a", "Ġb", "c\n", "▁d", "")), heading="H")
    assert ">\u2002" not in view
    assert "> b</span>" in view
    assert '>c<i class="eol">↵</i>\n</span>' in view
    assert ">∅</span>" in view


def test_ids_stand_in_for_texts_and_missing_logprobs_are_said(parse):
    bare = Rollout(prompt_ids=(), response_ids=(7, 8))
    seen = parse(token_view(bare, heading="H"))
    assert [a["class"] for a in seen.all("span") if "data-tip" in a] == ["id", "id"]
    assert "log ratio not recorded" in seen.text
    assert "no trust mask was recorded" in seen.text
    assert seen.all("svg") == []


def test_a_rejected_sequence_is_marked_as_a_whole(parse):
    seen = parse(token_view(with_(trust_mask=(False,) * 5), heading="H"))
    assert len(seen.all("div", "all-out")) == 1
    assert len(seen.all("span", "bad")) == 1
    assert parse(token_view(ROLLOUT, heading="H")).all("div", "all-out") == []


def test_a_long_sequence_shows_its_worst_tokens_and_says_what_it_leaves_out(parse):
    count, worst = 20_000, 12_345
    trainer = [-1.0] * count
    trainer[worst] = -6.0
    long = Rollout(
        prompt_ids=(), response_ids=(3,) * count, rollout_logprobs=(-1.0,) * count, trainer_logprobs=tuple(trainer)
    )
    view = token_view(long, heading="H", most=500)
    seen = parse(view)
    places = [int(a["data-at"]) for a in seen.all("span") if "data-tip" in a]
    assert len(places) <= 500
    assert {1, worst + 1, count} <= set(places)
    gaps = [int(w.split()[1].replace(",", "")) for w in seen.words if "tokens not shown" in w]
    assert sum(gaps) + len(places) == count
    assert len(view) < 200_000


def test_the_key_names_every_step_of_the_scale(parse):
    text = parse(token_key()).text
    assert all(f"{sign}{edge}" in text for sign in "−+" for edge in ("0.01", "0.03", "0.1", "0.3", "1"))

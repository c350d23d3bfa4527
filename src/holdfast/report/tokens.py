"""The token viewer: a sequence's tokens coloured by how far trainer and engine disagree on each of them.

Colour is the log-ratio log(trainer/engine): warm colours mark tokens that the trainer finds less likely than the engine
did, cool ones tokens it finds more likely. Masked tokens are struck through, so that colour is never the only sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from holdfast.report.charts.scales import number
from holdfast.report.charts.svg import Box, Drawing, Row, Svg, escape, label, tag
from holdfast.report.page import Markup, element, figure, html, join, paragraph
from holdfast.types import Rollout

EDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
_PIECES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


def log_ratios(rollout: Rollout) -> list[float | None]:
    """log(trainer/engine) of each response token; None where either logprob was not recorded."""
    count = len(rollout.response_ids)
    engine, trainer = rollout.rollout_logprobs, rollout.trainer_logprobs
    if engine is None or trainer is None:
        return [None] * count
    return [t - e if math.isfinite(t - e) else None for e, t in zip(engine, trainer, strict=True)]


def worst_position(rollout: Rollout) -> tuple[int, float] | None:
    """Position of the token with the largest |log ratio|, and that log ratio; None where none was recorded."""
    known = [(i, r) for i, r in enumerate(log_ratios(rollout)) if r is not None]
    return max(known, key=lambda pair: abs(pair[1]), default=None)


def masked_tokens(rollout: Rollout) -> int | None:
    """How many of the policy's own tokens the objective kept out of the gradient; None where not recorded."""
    if rollout.trust_mask is None:
        return None
    return sum(own and not kept for own, kept in zip(_own(rollout), rollout.trust_mask, strict=True))


def verdict(rollout: Rollout) -> tuple[str, str]:
    """What the objective decided about a sequence, `accepted`, `rejected`, `partly masked` or `no verdict`, and why."""
    masked, own = masked_tokens(rollout), sum(_own(rollout))
    if own == 0:
        return "no verdict", "the response holds no token of the policy"
    if masked is None:
        return "no verdict", "no trust mask was recorded"
    if masked == 0:
        return "accepted", "every token takes part in the gradient"
    reason = f" by {rollout.mask_reason}" if rollout.mask_reason else "; the reason was not recorded"
    if masked == own:
        return "rejected", f"the whole sequence was masked{reason}"
    return "partly masked", f"{masked} of {own} tokens were masked{reason}"


def token_view(rollout: Rollout, *, heading: str, note: str = "", most: int = 1500) -> Markup:
    """One sequence: verdict and reason, its numbers, the log-ratio along it, and its tokens.

    A sequence longer than `most` tokens shows its ends and the surroundings of its worst tokens; gaps say how many
    tokens they leave out.
    """
    word, why = verdict(rollout)
    tone = {"accepted": "chip good", "rejected": "chip bad", "partly masked": "chip bad"}.get(word, "chip")
    ratios = log_ratios(rollout)
    drawn = any(r is not None for r in ratios)
    strip = figure(_strip(rollout, ratios), full=True, heading=False) if drawn else ""
    body = [_token(rollout, ratios, i) if i >= 0 else _gap(-i) for i in _shown(ratios, most)]
    shown = element("span", _text(rollout.prompt_text), css="prompt") if rollout.prompt_text else ""
    names = escape(f"engine logprob|trainer logprob|log ratio|{_kl(rollout)[0]}|mask")
    spoken = escape(f"{heading}: tokens; arrow keys read them one by one")
    return element(
        "div",
        element("h3", heading),
        paragraph(element("span", word, css=tone), why, "."),
        paragraph(note) if note else "",
        Markup(
            f'<div class="tokens{" all-out" if word == "rejected" else ""}" tabindex="0" role="group" '
            f'data-names="{names}" aria-label="{spoken}">{shown}{join(body)}</div>'
        ),
        Markup('<p class="readout" aria-live="polite"></p>'),
        paragraph(_numbers(rollout), css="facts-line"),
        strip,
        css="viewer",
    )


def token_key() -> Markup:
    """What the colours of the viewer mean."""
    ramp = [f'<span class="n{i}">−{number(EDGES[i - 1])}</span>' for i in range(len(EDGES), 0, -1)]
    ramp += [f'<span class="p{i}">+{number(EDGES[i - 1])}</span>' for i in range(1, len(EDGES) + 1)]
    return element(
        "p",
        "log ratio at least:",
        element("span", Markup("".join(ramp)), css="ramp"),
        "warm: the trainer finds the token less likely than the engine did; struck through: masked",
        css="key",
    )


def _own(rollout: Rollout) -> Sequence[bool]:
    return rollout.response_mask if rollout.response_mask is not None else (True,) * len(rollout.response_ids)


def _numbers(rollout: Rollout) -> Markup:
    ratios = [abs(r) for r in log_ratios(rollout) if r is not None]
    items = [("step", rollout.step), ("environment", rollout.environment), ("reward", rollout.reward)]
    items += [("tokens", len(rollout.response_ids)), ("finished by", rollout.finish_reason)]
    items.append(("expected answer", rollout.extra.get("answer")))
    parts = [(k, number(v) if isinstance(v, int | float) else v) for k, v in items if v is not None]
    if ratios:
        parts += [("mean |log ratio|", number(sum(ratios) / len(ratios))), ("largest", number(max(ratios)))]
    else:
        parts.append(("log ratio", "not recorded"))
    name, kl = _kl(rollout)
    if kl:
        parts.append((f"largest {name}", number(max(kl))))
    return join((join((k, " ", element("b", v))) for k, v in parts), " · ")


def _kl(rollout: Rollout) -> tuple[str, tuple[float, ...] | None]:
    """What the log holds of each token's KL: the exact one, or what it is at least."""
    if rollout.kl_exact is None and rollout.kl_lower is not None:
        return "KL at least", rollout.kl_lower
    return "exact KL", rollout.kl_exact


def _token(rollout: Rollout, ratios: list[float | None], i: int) -> Markup:
    own = _own(rollout)[i]
    kept = rollout.trust_mask is None or rollout.trust_mask[i]
    kl = _kl(rollout)[1]
    mask = "not the policy's own" if not own else "masked" if not kept else "kept"
    values = [
        number(rollout.rollout_logprobs[i] if rollout.rollout_logprobs else None),
        number(rollout.trainer_logprobs[i] if rollout.trainer_logprobs else None),
        number(ratios[i]),
        number(kl[i] if kl else None),
        mask if rollout.trust_mask is not None or not own else "–",
    ]
    css = [_shade(ratios[i]), "" if own else "given", "out" if own and not kept else ""]
    if rollout.token_texts is not None:
        text = _text(rollout.token_texts[i])
    else:
        text, css = html(rollout.response_ids[i]), [*css, "id"]
    classes = " ".join(c for c in css if c)
    written = f' class="{classes}"' if classes else ""
    return Markup(f'<span{written} data-at="{i + 1}" data-tip="{escape("|".join(values))}">{text}</span>')


def _shade(ratio: float | None) -> str:
    level = sum(abs(ratio) >= edge for edge in EDGES) if ratio is not None else 0
    return f"{'p' if ratio and ratio > 0 else 'n'}{level}" if level else ""


def _text(text: str) -> Markup:
    """Token text with its line breaks kept and marked; byte-level and sentencepiece spaces become spaces."""
    lines = text.translate(_PIECES).split("\n")
    return join(lines, '<i class="eol">↵</i>\n') if lines != [""] else Markup("∅")


def _gap(count: int) -> Markup:
    return element("span", f"… {count:,} tokens not shown …", css="gap")


def _shown(ratios: list[float | None], most: int) -> list[int]:
    """Positions to show in order; a negative entry -k stands for k tokens left out."""
    count = len(ratios)
    if count <= most:
        return list(range(count))
    around, keep = 20, set(range(most // 5)) | set(range(count - most // 5, count))
    for i in sorted(range(count), key=lambda i: -abs(ratios[i] or 0.0)):
        near = set(range(max(0, i - around), min(count, i + around + 1)))
        if len(keep | near) > most:
            break
        keep |= near
    shown: list[int] = []
    last = -1
    for i in sorted(keep):
        if i - last > 1:
            shown.append(-(i - last - 1))
        shown.append(i)
        last = i
    return shown


def _strip(rollout: Rollout, ratios: list[float | None], bins: int = 240) -> Svg:
    """Log ratio along the sequence as bars up and down; a long sequence shows the worst token of each stretch."""
    count = len(ratios)
    stretches = [range(k * count // bins, (k + 1) * count // bins) for k in range(bins)] if count > bins else None
    groups = stretches or [range(i, i + 1) for i in range(count)]
    worst = [max(g, key=lambda i: abs(ratios[i] or 0.0)) for g in groups]
    reach = max((abs(ratios[i] or 0.0) for i in worst), default=0.0) or 1.0
    height = 56.0

    def layout(width: float) -> Drawing:
        box = Box(0.0, 0.0, width, height)
        step, zero = width / len(worst), height / 2
        parts = [tag("path", class_="grid", d=f"M0 {zero:.1f}H{width:.1f}")]
        for k, i in enumerate(worst):
            ratio = ratios[i] or 0.0
            size = max(0.5, abs(ratio) / reach * (height / 2 - 2)) if ratio else 0.0
            where = {"x": k * step, "y": zero - (size if ratio > 0 else 0.0), "height": size}
            css = "f1" if ratio > 0 else "f2"
            parts.append(tag("rect", class_=css, width=max(0.8, min(step - 1, 12.0)), **where))
        parts.append(label("first token", 0.0, height + 14, anchor="start"))
        parts.append(label(f"log ratio, ±{number(reach)}", width / 2, height + 14))
        parts.append(label(f"token {count}", width, height + 14, anchor="end"))
        return Drawing("".join(parts), height + 20, box)

    texts = rollout.token_texts or tuple(str(i) for i in rollout.response_ids)
    rows = tuple(Row((str(i + 1), texts[i], number(ratios[i])), (k + 0.5) / len(worst)) for k, i in enumerate(worst))
    place = worst_position(rollout)
    said = f"Log ratio of {count} tokens; largest {number(place[1])} at token {place[0] + 1}." if place else ""
    note = f"Each bar is the worst token of a stretch of about {round(count / bins)}." if stretches else ""
    return Svg("Disagreement along the sequence", said, layout, ("position", "token", "log ratio"), rows, note)

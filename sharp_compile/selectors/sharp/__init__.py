"""ShaRP (arXiv 2512.05385): text attention, with three corrections.

The paper's formulas could not be read; what is built here is ours, after its description. ``docs/method.md``
has the equations, the reasons and what was measured.
"""

from __future__ import annotations

import functools

from torch import Tensor

from ...calibration import Calibration
from ...options import Config
from ...selector_registry import Rule, register_rule
from ...sharp_options import Debias, Dedup, Segment
from ..context import Context
from .debias import debiased, measured
from .dedup import demote_copies
from .segments import own_segments, within_segments
from .text import text_attention, text_query


def sharp(
    ctx: Context,
    *calibration: Tensor,
    segment: Segment | None,
    debias: Debias | None,
    dedup: Dedup | None,
) -> Tensor:
    """Return how much the text after the video attends to each visual token.

    Args:
        ctx: the state of the scoring layer.
        calibration: profiles ``[N, V]`` float32 and their lengths ``[N]`` int64, if ``debias`` has a measured one.
        segment: adds the attention inside segments; None for text attention alone.
        debias: takes off what position alone explains.
        dedup: takes most of its score from a near copy of a higher-scored token.

    Returns:
        ``[B, S]`` float32.
    """
    query = text_query(ctx)
    if debias is None:
        scores = text_attention(ctx, query)
    elif not calibration:
        scores = debiased(ctx, query, debias.form)
    else:
        profiles, lengths = calibration
        scores = measured(ctx, text_attention(ctx, query), profiles, lengths, debias.form)
    if segment is not None and segment.scope == "scores":
        scores = scores + within_segments(ctx, scores, segment)
    return scores if dedup is None else demote_copies(ctx, scores, dedup)


@register_rule("sharp")
def rule(config: Config) -> Rule:
    """Return the rule with its three parts as the options say."""
    profile = None if config.debias is None else config.debias.profile
    constants = profile.table() if isinstance(profile, Calibration) else ()
    parts = functools.partial(sharp, segment=config.segment, debias=config.debias, dedup=config.dedup)
    if config.segment is None or config.segment.scope != "scores":
        return Rule(parts, constants)
    return Rule(parts, constants, segments=functools.partial(own_segments, segment=config.segment))

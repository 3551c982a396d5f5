"""The Dynamo backend: options in, a compiled graph out.

Dynamo's graph -> find the injection -> prune a copy (``passes.pipeline``) -> the inner backend

entry               what Dynamo calls: parses options, tells kinds of graphs apart, raises errors that Dynamo passes on
single_graph        a graph that injects visual features itself: pruned at once
cross_graph         a graph that reads embeddings from an earlier one: pruned at run time
tail_graph          a graph that reads hidden states of a pruned one: a head, a loss, pooling
injection_registry  what one graph tells the next about the embeddings that it hands over
runtime             compiled graphs when they run: settings, auxiliary outputs, rows with too much text
inner               hands graphs to the backend that compiles them, now or when they first run
untracked           prompts whose visual tokens no graph shows
reporting           reports, warnings and errors about what was pruned and what was not
"""

from .entry import sharp

__all__ = ["sharp"]

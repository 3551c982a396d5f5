"""Stand-ins of the operators of `flash_attn` 2.8, by its schemas, with loops: the package needs a GPU."""

import torch
from torch import Tensor

library = torch.library.Library("flash_attn", "FRAGMENT")
library.define(
    "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, bool causal, "
    "SymInt window_size_left, SymInt window_size_right, float softcap, Tensor? alibi_slopes, bool return_softmax) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "_flash_attn_varlen_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, "
    "SymInt window_size_left=-1, SymInt window_size_right=-1, float softcap=0.0, Tensor? alibi_slopes=None, "
    "bool return_softmax=False, Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
    "bool zero_tensors=False) -> (Tensor, Tensor, Tensor, Tensor)"
)
DENSE = torch.ops.flash_attn._flash_attn_forward
PACKED = torch.ops.flash_attn._flash_attn_varlen_forward


def attended(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Attention of `[B, S, H, D]` by a loop over heads."""
    groups = q.shape[2] // k.shape[2]
    heads = []
    for head in range(q.shape[2]):
        scores = q[:, :, head] @ k[:, :, head // groups].mT * scale
        heads.append(scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v[:, :, head // groups])
    return torch.stack(heads, 2)


def dense(q, k, v, dropout_p, softmax_scale, causal, *_):
    visible = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if causal:
        visible = visible.tril(k.shape[1] - q.shape[1])
    return attended(q, k, v, visible, softmax_scale), *_others(q)


def packed(q, k, v, begins_q, begins_k, max_q, max_k, dropout_p, softmax_scale, causal, *_):
    assert begins_q[-1] == len(q), "the places where samples begin are not those of these tokens"
    out = torch.empty_like(q)
    for begin, end, begin_k, end_k in zip(begins_q, begins_q[1:], begins_k, begins_k[1:], strict=False):
        own = dense(q[None, begin:end], k[None, begin_k:end_k], v[None, begin_k:end_k], 0.0, softmax_scale, causal)
        out[begin:end] = own[0][0]
    return out, *_others(q)


def _others(q):
    return q.new_empty(q.shape[:-1]), q.new_empty(0), torch.empty(2, dtype=torch.int64)


for name, function in {"_flash_attn_forward": dense, "_flash_attn_varlen_forward": packed}.items():
    library.impl(name, function, "CPU")
    torch.library.register_fake(f"flash_attn::{name}", lambda q, *_: (torch.empty_like(q), *_others(q)), lib=library)

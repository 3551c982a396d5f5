"""What a process does with models that nobody compiled with our backend, as numbers: run with `sharp` and without.

Run as ``python -m tests.no_harm [sharp] NAME...``; prints one JSON object.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
import tempfile
from typing import Any

import torch
import transformers
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GREEDY = {"max_new_tokens": 5, "do_sample": False}


def build(kind: str, **sizes: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZES | sizes)).eval()
    randomize(model)
    return model


def randomize(model: torch.nn.Module) -> None:
    """Weights with which a model does not say the same always."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.4)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 90, shape, generator=torch.Generator().manual_seed(sum(shape)))


def padded() -> dict[str, torch.Tensor]:
    ids = tokens(2, 24)
    mask = torch.ones_like(ids)
    ids[0, :4], mask[0, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def answer(model: Any, inputs: Any = None, **options: Any) -> Any:
    """Tokens, and the logits after each, of `generate`."""
    given = padded() if inputs is None else inputs
    output = model.generate(**given, **GREEDY | options, return_dict_in_generate=True, output_logits=True)
    return [output.sequences.tolist(), torch.stack(output.logits).tolist()]


def continuous(kind: str, **sizes: Any) -> Any:
    """Continuous batching, which hands attention functions a mask of its own."""
    config = GenerationConfig(**GREEDY, eos_token_id=None, pad_token_id=0)
    prompts = [tokens(length).tolist() for length in (7, 12, 9)]
    # By default its cache takes most of the machine's memory.
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
    model = build(kind, **sizes)
    results = model.generate_batch(prompts, generation_config=config, continuous_batching_config=small)
    return [list(results[f"req_{number}"].generated_tokens) for number in range(len(prompts))]


def video_model() -> Any:
    """`generate` of another model for videos."""
    from tests.architectures import ARCHITECTURES

    architecture = ARCHITECTURES["internvl"]
    model = architecture.build(layers=2)
    return answer(model, architecture.inputs(model, batch=2, pad=[3, 0]))


def copy_of_pruned(**compile_options: Any) -> Any:
    """Another model of the class that is pruned, eager or compiled with another backend."""
    from tests.architectures import ARCHITECTURES

    architecture = ARCHITECTURES["llava_onevision"]
    model = architecture.build(layers=3)
    if compile_options:
        model.compile(**compile_options)
    return answer(model, architecture.inputs(model, batch=2, pad=[3, 0]))


def trainer_step() -> Any:
    """The loss and weights of two steps of `Trainer` on a model of text."""
    model = build("Qwen2")
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens(4, 12)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no",
            disable_tqdm=True, learning_rate=1e-2, seed=0,
        )  # fmt: skip
        loss = transformers.Trainer(model, arguments, train_dataset=rows).train().training_loss
    return [loss, [parameter.double().sum().item() for parameter in model.parameters()]]


def losses() -> Any:
    """Losses by labels, by labels that were shifted before, and of last logits only, which is an error."""
    model, ids = build("Qwen2"), tokens(2, 12)
    hidden = model(input_ids=ids, labels=ids).loss.item()
    shifted = model(input_ids=ids, labels=ids, shift_labels=ids.roll(-1, 1)).loss.item()
    try:
        failed = model(input_ids=ids, labels=ids, logits_to_keep=3).loss.item()
    except Exception as error:
        failed = [type(error).__name__, str(error)]
    return [hidden, shifted, failed]


def encoder_and_decoder(kind: str) -> Any:
    """A static cache of an encoder and decoder, which holds two others."""
    small = {"vocab_size": 100, "decoder_start_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    sizes: dict[str, Any] = {
        "T5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "Bart": {
            "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "forced_eos_token_id": None,
            "bos_token_id": None, "max_position_embeddings": 128,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**small, **sizes[kind])
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    randomize(model)
    return [answer(model, cache_implementation=name) for name in ("static", "dynamic")]


def caches() -> Any:
    """Caches that are copied, pickled, cut back and reset, and a step on each."""
    model, ids = build("Qwen2"), tokens(1, 10)
    told = []
    for change in (copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache)), cut_back):
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache)
        cache = change(cache)
        output = model(tokens(1, 2), past_key_values=cache)
        told.append(
            [output.logits.tolist(), cache.get_seq_length(), [list(layer.keys.shape) for layer in cache.layers]]
        )
    static = transformers.StaticCache(config=model.config, max_cache_len=16)
    told += [model(ids, past_key_values=static).logits.tolist()]
    static.reset()
    told += [
        model(ids[:, :5], past_key_values=static).logits.tolist(),
        [list(layer.keys.shape) for layer in static.layers],
    ]
    return told


def cut_back(cache: Any) -> Any:
    cache.crop(-4)
    return cache


def uneven_mask() -> Any:
    """A mask that is wider than the keys is an error of stock attention, in every implementation."""
    told = []
    for name in ("sdpa", "eager"):
        model = build("Qwen2", attn_implementation=name)
        ids = tokens(2, 6)
        wide = torch.zeros(2, 1, 6, 9)
        try:
            told.append(model(ids, attention_mask=wide).logits.tolist())
        except Exception as error:
            told.append(type(error).__name__)
    return told


def compiled_with_another_backend() -> Any:
    """Text models under another backend: what is traced is stock code too."""
    model = build("Qwen2")
    fast = torch.compile(model, backend="eager")
    return [fast(**padded()).logits.tolist(), answer(model)]


CASES = {
    "continuous": lambda: continuous("Qwen2"),
    "continuous_windows": lambda: continuous("Mistral", sliding_window=16),
    "continuous_sinks": lambda: continuous(
        "GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=16
    ),
    "video_model": video_model,
    "copy_of_pruned": copy_of_pruned,
    "copy_compiled": lambda: copy_of_pruned(backend="eager"),
    "compiled": compiled_with_another_backend,
    "trainer": trainer_step,
    "losses": losses,
    "t5": lambda: encoder_and_decoder("T5"),
    "bart": lambda: encoder_and_decoder("Bart"),
    "caches": caches,
    "uneven_mask": uneven_mask,
    "beams": lambda: answer(build("Qwen2"), num_beams=3),
    "windows": lambda: answer(build("Mistral", sliding_window=8)),
    "eager_attention": lambda: answer(build("Qwen2", attn_implementation="eager")),
    "static": lambda: answer(build("Qwen2"), cache_implementation="static"),
    "assisted": lambda: answer(
        build("Qwen2"), {"input_ids": tokens(1, 9)}, assistant_model=build("Qwen2", num_hidden_layers=1)
    ),
    "prompt_lookup": lambda: answer(
        build("Qwen2"), {"input_ids": tokens(1, 6).repeat(1, 3)}, prompt_lookup_num_tokens=3
    ),
}


def prune_one() -> None:
    """Prunes a video model of each way to load and to decode."""
    import sharp_compile
    from tests.architectures import ARCHITECTURES

    architecture = ARCHITECTURES["llava_onevision"]
    model = architecture.build(layers=3)
    model.compile(backend="sharp", options={"selector": "uniform", "inner": "eager", "on_skip": "raise"})
    inputs = architecture.inputs(model, batch=2, pad=[3, 0])
    model.generate(**inputs, **GREEDY)
    model.generate(**inputs, **GREEDY, cache_implementation="static")
    assert any(report.pruned for report in sharp_compile.reports())


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    if "sharp" in arguments:
        prune_one()
    told = {}
    for name in [name for name in arguments if name in CASES] or CASES:
        try:
            # Trainer asks for gradients itself.
            with torch.set_grad_enabled(name == "trainer"):
                told[name] = CASES[name]()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    print("RESULT", json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])

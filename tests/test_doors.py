"""Every way to switch the backend on: pruned, or it says which way prunes. Never neither."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sharp_compile
from sharp_compile.integrations.marked import holds_compiled, options_of
from tests import oracle
from tests.architectures import ALL_ARCHITECTURES, shared_model
from tests.process import output_of
from tests.support import assert_same_generation, assert_same_logits, forward, generate

NAME = "llava_onevision"
CASE = {"layer": 1, "selector": "uniform", "retention": 0.25}
OPTIONS = CASE | {"inner": "eager"}
WAY = r'model\.compile\(backend="sharp"'


@pytest.fixture
def model():
    return copy.deepcopy(shared_model(NAME))


@pytest.fixture
def inputs(model):
    return ALL_ARCHITECTURES[NAME].inputs(model)


def assert_pruned(model, inputs, call, reference=None):
    """`call` of `model` gives what the stock model gives that is pruned by hand."""
    stock = shared_model(NAME) if reference is None else reference
    actual = call(model, inputs)
    with oracle.prune(stock, **CASE):
        expected = call(stock, inputs)
    if call is generate:
        assert_same_generation(actual, expected, inputs)
    else:
        assert_same_logits(actual.logits, expected.logits, inputs)
    assert [report.pruned for report in sharp_compile.reports()].count(True) == 1


def adapted(model):
    """A PEFT model, and the same with the adapters merged, to be pruned by hand."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    torch.manual_seed(0)
    wrapper = peft.get_peft_model(model, config).eval()
    return wrapper, copy.deepcopy(wrapper).merge_and_unload()


@pytest.mark.parametrize("call", [generate, pytest.param(forward, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "door", ["in place", *(pytest.param(door, marks=pytest.mark.slow) for door in ("by function", "inside"))]
)
def test_peft(model, inputs, call, door):
    wrapper, merged = adapted(model)
    if door == "in place":
        wrapper.compile(backend="sharp", options=OPTIONS)
    elif door == "by function":
        assert sharp_compile.compile(wrapper, **OPTIONS) is wrapper
    else:
        wrapper.get_base_model().compile(backend="sharp", options=OPTIONS)
    assert_pruned(wrapper, inputs, call, merged)


def test_learned_prompts_are_compiled_with_the_wrapper_that_adds_them():
    peft = pytest.importorskip("peft")
    text = shared_model(NAME).model.language_model
    from transformers import Qwen2ForCausalLM

    base = Qwen2ForCausalLM(text.config)
    wrapper = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    sharp_compile.compile(wrapper, **OPTIONS)
    assert options_of(wrapper) and options_of(wrapper.get_base_model())


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    """A process group of one, whose buckets are small, so that Dynamo would cut the decoder between them."""
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 20_000)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "door", ["in place", *(pytest.param(door, marks=pytest.mark.slow) for door in ("wrapped", "by function", "inside"))]
)
def test_distributed_data_parallel(model, inputs, door, one_process):
    """Of a decoder in several graphs the later ones would get fewer tokens than they were compiled for."""
    parallel = DistributedDataParallel(model, bucket_cap_mb=0.5)
    called = parallel
    if door == "in place":
        parallel.compile(backend="sharp", options=OPTIONS)
    elif door == "wrapped":
        called = torch.compile(parallel, backend="sharp", options=OPTIONS)
    elif door == "by function":
        sharp_compile.compile(parallel, **OPTIONS)
    else:
        model.compile(backend="sharp", options=OPTIONS)
    assert torch._dynamo.config.optimize_ddp
    assert_pruned(called, inputs, forward)
    assert torch._dynamo.config.optimize_ddp
    if door in ("in place", "by function"):
        assert options_of(parallel.module) is not None


class Own(type(shared_model(NAME))):
    """A model whose `compile` does what it wants: nothing."""

    def compile(self, *args, **kwargs):
        pass


def test_a_compile_of_the_classes_own_is_not_asked(model, inputs):
    model.__class__ = Own
    sharp_compile.compile(model, **OPTIONS)
    assert_pruned(model, inputs, generate)


def test_generate_of_what_torch_compile_returns_says_what_it_runs(model, inputs):
    fast = torch.compile(model, backend="sharp", options=OPTIONS)
    with pytest.warns(UserWarning, match=WAY):
        tokens = generate(fast, inputs)
    assert tokens.sequences.equal(generate(shared_model(NAME), inputs).sequences)
    assert "generate" not in vars(model)
    pickle.dumps(vars(fast)["generate"].func)
    with pytest.raises(sharp_compile.CannotPrune, match=WAY):
        generate(torch.compile(model, backend="sharp", options=OPTIONS | {"on_skip": "raise"}), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(torch.compile(model, backend="sharp", options=OPTIONS | {"on_skip": "silent"}), inputs)
        generate(torch.compile(model, backend="eager"), inputs)
        # What is compiled in place is pruned, whatever was wrapped around it.
        model.compile(backend="sharp", options=OPTIONS)
        assert_pruned(fast, inputs, generate)


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("on_all_devices", [True, pytest.param(None, marks=pytest.mark.slow)])
def test_a_compile_config_says_that_it_reaches_no_prefill(model, inputs, cache, on_all_devices):
    from transformers.generation.configuration_utils import CompileConfig

    config = CompileConfig(backend="sharp", mode=None, options=OPTIONS)
    config._compile_all_devices = on_all_devices
    with pytest.warns(UserWarning, match=WAY) as told:
        generate(model, inputs, compile_config=config, **cache)
    assert len([each for each in told if "CompileConfig" in str(each.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(model, inputs, compile_config=CompileConfig(backend="eager", mode=None), **cache)
        model.compile(backend="sharp", options=OPTIONS)
        assert_pruned(model, inputs, lambda *given: forward(*given))


def test_layers_that_are_compiled_alone_say_so(model):
    accelerate = pytest.importorskip("accelerate.utils")
    with pytest.warns(UserWarning, match=WAY):
        accelerate.compile_regions(model, backend="sharp", options=OPTIONS)
    layer = model.model.language_model.layers[0]
    with pytest.raises(sharp_compile.CannotPrune, match=WAY):
        layer.compile(backend="sharp", options=OPTIONS | {"on_skip": "raise"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate.compile_regions(model, backend="eager")


def test_accelerate_takes_the_backend(model, inputs):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.utils import TorchDynamoPlugin

    plugin = TorchDynamoPlugin(backend="sharp", options=OPTIONS)
    prepared = accelerate.Accelerator(cpu=True, dynamo_plugin=plugin).prepare(model)
    assert_pruned(prepared, inputs, forward)
    with pytest.raises(ValueError, match="SHARPER"):
        TorchDynamoPlugin(backend="sharper")


def test_training_arguments(model, inputs, tmp_path):
    """Trainer hands its model to accelerate, which compiles it with the default options."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path),
        torch_compile_backend="sharp",
        max_steps=1,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    row = {name: value[0] for name, value in inputs.items()} | {"labels": inputs["input_ids"][0]}
    trainer = Trainer(model, arguments, train_dataset=[row])
    assert trainer.accelerator.state.dynamo_plugin.to_kwargs()["backend"] == "sharp"


def test_explain_changes_nothing():
    """It compiles for one call: a wrapper's models inside stay as they were."""
    name = "instructblipvideo"
    model = copy.deepcopy(shared_model(name))
    with torch.compiler.set_stance("force_eager"):  # what is asked is known before anything is traced
        sharp_compile.explain(model, **ALL_ARCHITECTURES[name].inputs(model))
    assert not holds_compiled(model) and "generate" not in vars(model)


def test_a_copy_is_not_compiled(model, inputs):
    model.compile(backend="sharp", options=OPTIONS)
    assert not holds_compiled(copy.deepcopy(model))
    wrapper = nn.Sequential(model)
    assert holds_compiled(wrapper) and options_of(wrapper) is None


class Holder(nn.Module):
    """A module of a user's own with a model inside, which it asks for answers."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, **inputs):
        return self.inside(**inputs)

    def answer(self, inputs):
        return generate(self.inside, inputs)


def test_a_module_that_holds_a_model_compiles_it_inside(model, inputs):
    holder = Holder(model)
    holder.compile(backend="sharp", options=OPTIONS)
    assert_pruned(model, inputs, generate)


def test_a_generate_of_the_models_own_is_pruned():
    """It calls its language model past the call that is compiled."""
    name = "instructblipvideo"
    model = copy.deepcopy(shared_model(name))
    model.compile(backend="sharp", options=OPTIONS)
    assert_pruned(model, ALL_ARCHITECTURES[name].inputs(model), generate, shared_model(name))


def test_a_compile_config_in_a_process_that_compiled_nothing():
    """On a CPU transformers compiles nothing, so that no backend is looked up."""
    code = """
import warnings, torch, sharp_compile, transformers
from transformers.generation.configuration_utils import CompileConfig

sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, num_key_value_heads=1, pad_token_id=0))
with warnings.catch_warnings(record=True) as told:
    model.generate(torch.tensor([[3]]), max_new_tokens=2, compile_config=CompileConfig(backend="sharp", mode=None))
print(*(each.message for each in told))
"""
    assert 'model.compile(backend="sharp"' in output_of(code)

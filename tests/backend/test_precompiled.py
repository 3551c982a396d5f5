"""What one process compiled, another one runs: the same numbers, and nothing of other options or backends."""

import json

import pytest
import torch

from sharp_compile.backend import entry, precompiled
from tests.process import output_of

PROGRAM = """
import json, os, sys
folder, task = sys.argv[1], json.loads(sys.argv[2])
os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
import torch
from torch._dynamo.utils import counters
import sharp_compile
from tests.toy import Toy, toy_inputs

torch._dynamo.config.caching_precompile = task.get("precompile", True)
if task.get("load"):
    torch.compiler.load_cache_artifacts(open(task["load"], "rb").read())
torch.manual_seed(0)
model, inputs = Toy(layers=4).eval(), toy_inputs(**task.get("inputs", {}))
own = lambda ctx: ctx.hidden.norm(dim=-1)
if task.get("selector") == "function":
    task["options"]["selector"] = own
elif task.get("selector") == "name":
    task["options"]["selector"] = "brightest"
    sharp_compile.register_selector("brightest")(own)
if task["backend"] == "sharp":
    model.compile(backend="sharp", options=task["options"])
else:
    model.compile(backend=task["backend"])
told = {}
with torch.no_grad():
    logits = model(**inputs)[0]
    if task.get("then"):
        other = Toy(layers=4).eval()
        other.load_state_dict(model.state_dict())
        how = {"options": task["options"] | {"retention": 0.5}} if task["then"] == "sharp" else {}
        other.compile(backend=task["then"], **how)
        told["then"] = other(**inputs)[0].shape[1]
    else:
        torch.testing.assert_close(logits, model(**inputs)[0])
artifacts = torch.compiler.save_cache_artifacts()
if task.get("save"):
    open(task["save"], "wb").write(artifacts[0])
print(json.dumps(told | {
    "length": logits.shape[1],
    "sum": logits.sum().item(),
    "frames": counters["frames"]["total"],
    "found": counters["dynamo_cache"]["dynamo_cache_hit"],
    "reports": [report.summary() for report in sharp_compile.reports()],
    "kept": [None if report.kept is None else report.kept.tolist() for report in sharp_compile.reports()],
    "misses": sum(count for kind in ("inductor", "aot_autograd") for name, count in counters[kind].items()
                  if "cache_miss" in name or "cache_bypass" in name),
    "hits": counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
}))
"""
OPTIONS = {"inner": "eager", "retention": 0.25, "selector": "uniform"}


def run(folder, backend="sharp", options=OPTIONS, **task):
    return json.loads(output_of(PROGRAM, str(folder), json.dumps({"backend": backend, "options": options} | task)))


def test_a_second_process_needs_no_dynamo(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert (first["found"], second["found"]) == (0, 1)
    assert first["frames"] > 0 == second["frames"]
    same = ("length", "sum", "reports", "kept")
    assert [second[name] for name in same] == [first[name] for name in same]
    assert first["length"] == 6 + 5
    # Other options are compiled by themselves, and then found by themselves.
    half = OPTIONS | {"retention": 0.5}
    third, fourth = run(tmp_path, options=half), run(tmp_path, options=half)
    assert third["length"] == fourth["length"] == 6 + 10
    assert (third["found"], fourth["found"]) == (0, 1)


def test_what_another_backend_compiled_is_not_taken(tmp_path):
    assert run(tmp_path, "eager")["length"] == 26
    assert run(tmp_path)["length"] == 11
    assert run(tmp_path, "eager")["length"] == 26


@pytest.mark.slow
@pytest.mark.parametrize(("then", "length"), [("eager", 26), ("sharp", 16)])
def test_precompiled_code_that_another_backend_or_setting_meets(tmp_path, then, length):
    first, second = run(tmp_path, then=then), run(tmp_path, then=then)
    assert first["then"] == second["then"] == length
    assert first["length"] == second["length"] == 11


@pytest.mark.slow
def test_several_rows(tmp_path):
    batch = {"inputs": {"rows": 2}}
    first, second = run(tmp_path, **batch), run(tmp_path, **batch)
    assert second["frames"] == 0
    assert (first["length"], first["sum"]) == (second["length"], second["sum"])


@pytest.mark.parametrize("given_by", ["function", pytest.param("name", marks=pytest.mark.slow)])
def test_a_function_of_the_users_is_compiled_anew(tmp_path, given_by):
    first, second = run(tmp_path, selector=given_by), run(tmp_path, selector=given_by)
    assert second["found"] == 0 < second["frames"]
    assert first["sum"] == second["sum"]


def test_what_may_be_given_embeddings_is_not_kept_unpruned(monkeypatch):
    told = []
    monkeypatch.setattr(entry, "keep", lambda *arguments: told.append(arguments))
    with torch.no_grad():
        torch.compile(lambda states: states * 2, backend="sharp", options=OPTIONS)(torch.ones(1, 6, 4))
    ((module, _, compiled, setting),) = told
    with pytest.raises(precompiled.NotKept, match="another graph may put visual features into"):
        precompiled._kept(module, compiled, setting)


@pytest.mark.slow
def test_caches_of_inductor_and_artifacts(tmp_path):
    one, other, artifacts = tmp_path / "one", tmp_path / "other", str(tmp_path / "artifacts")
    options = {"retention": 0.25, "selector": "uniform", "hoist": False}
    first = run(one, options=options, precompile=False, save=artifacts)
    assert first["misses"] > 0 == first["hits"]
    second = run(one, options=options, precompile=False)
    assert second["hits"] > 0 == second["misses"]
    third = run(other, options=options, precompile=False, load=artifacts)
    assert third["hits"] > 0 == third["misses"]
    assert first["sum"] == second["sum"] == third["sum"]


AHEAD = """
import os, sys
folder, task = sys.argv[1:]
os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
import torch
import sharp_compile
from tests.toy import Toy, toy_inputs

torch.manual_seed(0)
model, inputs, file = Toy(layers=3).eval(), toy_inputs(), os.path.join(folder, "compiled")
with torch.no_grad():
    if task == "save":
        options = {"retention": 0.25, "selector": "uniform"}
        whole = torch.compile(model, backend="sharp", options=options, fullgraph=True)
        compiled = whole.forward.aot_compile(((), inputs))
        compiled.save_compiled_function(file)
    else:
        with open(file, "rb") as opened:
            compiled = torch.compiler.load_compiled_function(opened)
    logits = compiled(model, **inputs)[0]
(report,) = sharp_compile.reports()
print(logits.shape[1], round(logits.sum().item(), 4), report.summary(), report.kept.tolist())
"""


@pytest.mark.slow
def test_aot_compile(tmp_path):
    saved, loaded = (output_of(AHEAD, str(tmp_path), task) for task in ("save", "load"))
    assert saved == loaded
    assert saved.startswith("11 ")


GENERATE = """
import os, sys
os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.argv[1]
import torch
import sharp_compile
from tests.architectures import ALL_ARCHITECTURES
from tests.support import generate

torch._dynamo.config.caching_precompile = True
architecture = ALL_ARCHITECTURES["llava_onevision"]
model = architecture.build()
inputs = architecture.inputs(model, batch=2, pad=[0, 3])
sharp_compile.compile(model, inner="eager", retention=0.25, selector="uniform")
print(generate(model, inputs, max_new_tokens=3).sequences.tolist())
print([report.summary() for report in sharp_compile.reports() if report.pruned])
torch.compiler.save_cache_artifacts()
"""


@pytest.mark.slow
def test_what_pytorch_can_not_read_again_is_compiled_anew(tmp_path):
    first, second = output_of(GENERATE, str(tmp_path)), output_of(GENERATE, str(tmp_path))
    assert first == second
    assert "pruned after layer 1" in first

"""What reports hold, and for how long."""

import torch

import sharp_compile
from sharp_compile import report
from sharp_compile.report import MAX_REPORTS, MAX_RUNS, GraphReport
from tests.toy import Toy, toy_inputs


def test_the_last_reports_are_kept():
    made = [report.add(GraphReport(False, str(number))) for number in range(MAX_REPORTS + 3)]
    assert sharp_compile.reports() == made[3:]


def test_the_tensors_of_the_last_runs_are_held():
    graphs = [GraphReport(True, "") for _ in range(MAX_RUNS + 2)]
    for graph in graphs:
        report.keep(graph, torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3))
    held = [[getattr(graph, name) for name in ("kept", "scores", "frame", "segment")] for graph in graphs]
    assert held[:2] == [[None] * 4] * 2
    assert all(isinstance(value, torch.Tensor) for values in held[2:] for value in values)


def test_a_graph_that_runs_again_is_one_of_the_last():
    first, others = GraphReport(True, ""), [GraphReport(True, "") for _ in range(MAX_RUNS)]
    for graph in (first, *others[:-1], first, others[-1]):
        report.keep(graph, torch.zeros(1, 2))
    assert first.kept is not None and others[0].kept is None


def test_a_report_holds_what_the_graph_returned():
    """No copy is made in a call, but where the next run writes into the same memory."""
    made = []

    def inner(graph, inputs):
        def run(*args):
            made.append(graph(*args))
            return made[-1]

        return run

    for cudagraphs in (False, True):
        torch._dynamo.reset()
        sharp_compile.reset()
        with torch._inductor.config.patch("triton.cudagraphs", cudagraphs):
            torch.compile(Toy(), backend="sharp", options={"inner": inner})(**toy_inputs())
        kept = sharp_compile.reports()[-1].kept
        assert any(kept is value for value in made[-1]) != cudagraphs

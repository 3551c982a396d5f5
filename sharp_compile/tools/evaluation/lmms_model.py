"""What lmms-eval asks: a model of transformers that gets chat messages and answers with ``generate``.

lmms-eval has a class for each family of models. Those for video models want ``decord``, give videos undecoded to
transformers, or expect a GPU; here one class serves all models, by the processor's own chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from sharp_compile.integrations.transformers.prompt import without_prompt
from sharp_compile.report import watch
from sharp_compile.tools.demo import DemoError, video

from .score import LmmsError, NotPruned

MAX_NEW_TOKENS = 1024
"""For tasks that don't say how long an answer may be."""


class ChatModel(lmms):
    """A model whose processor takes images or videos in chat messages, and one question at a time.

    Attributes:
        layer: after which layer the last pruned graph to run is short; None if none ran.
    """

    is_simple = False  # tasks hand over chat messages

    def __init__(self, model: Any, processor: Any, frames: int, must_prune: bool) -> None:
        super().__init__()
        self.model, self.processor, self.must_prune = model, processor, must_prune
        self.layer: int | None = None
        # The questions on one video follow each other, and a long one takes a minute to decode.
        self._read = lru_cache(maxsize=1)(lambda path: video.read(Path(path), frames))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to requests of lmms-eval, in their order."""
        return [self._answer(*request.args) for request in tqdm(requests, desc="questions", unit="")]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not served."""
        raise LmmsError(f"{requests[0].task_name}: tasks of several rounds are not served")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not served: lmms-eval gives such tasks to no model that takes chat messages."""
        raise LmmsError(f"{requests[0].task_name}: only tasks whose answers are generated are served")

    def _answer(
        self,
        context: str,
        doc_to_messages: Callable[[Any], Any],
        settings: Mapping[str, Any],
        number: int,
        task: str,
        split: str,
    ) -> str:
        question = f"{task}, question {number}"
        asked = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][number]))
        inputs, has_visual = self._inputs(asked, question)
        with watch() as seen, torch.no_grad():
            tokens = self.model.generate(**inputs, **generation_settings(settings))[0]
        if self.must_prune and has_visual:
            ran = [report for report in seen if report.pruned and report.kept is not None]
            if not ran:
                reasons = "; ".join(dict.fromkeys(report.reason for report in seen))
                raise NotPruned(f"{question}: the model ran unpruned: {reasons or 'no graph of it was compiled'}")
            self.layer = ran[-1].layer
        answer = without_prompt(tokens, inputs["input_ids"][0])
        return self.processor.decode(answer, skip_special_tokens=True).strip()

    def _inputs(self, asked: ChatMessages, question: str) -> tuple[Mapping[str, torch.Tensor], bool]:
        """Return what ``generate`` takes, and whether there is anything to see."""
        metadata: list[dict[str, Any]] = []

        def part(content: Any) -> dict[str, Any]:
            match content.type:
                case "text":
                    return {"type": "text", "text": content.text}
                case "image":
                    return {"type": "image", "image": content.url}
                case "video" if isinstance(content.url, str) and content.start_time is content.end_time is None:
                    clip = self._read(content.url)
                    metadata.append(
                        {
                            "total_num_frames": clip.total,
                            "fps": clip.fps,
                            "height": clip.frames.shape[1],
                            "width": clip.frames.shape[2],
                            "duration": clip.total / clip.fps,
                            "frames_indices": list(clip.indices),
                        }
                    )
                    return {"type": "video", "video": clip.frames}
                case "video":
                    raise LmmsError(f"{question}: only whole videos in files are served, not a part of one")
                case other:
                    raise LmmsError(f"{question}: only images and videos are served, not {other}")

        try:
            messages = [
                {"role": message.role, "content": [part(content) for content in message.content]}
                for message in asked.messages
            ]
            inputs = self.processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"video_metadata": metadata, "do_sample_frames": False} if metadata else None,
            )
        except (DemoError, TypeError, ValueError) as error:
            raise LmmsError(f"{question}: the model can't be asked: {error}") from error
        has_visual = any(part["type"] != "text" for message in messages for part in message["content"])
        return inputs.to(self.model.device, self.model.dtype), has_visual


def generation_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's settings as ``generate`` takes them; greedy unless the task sets a temperature.

    ``until`` is left out, as lmms-eval's own models of chat messages do.
    """
    chosen: dict[str, Any] = {
        "max_new_tokens": settings.get("max_new_tokens", MAX_NEW_TOKENS),
        "num_beams": settings.get("num_beams", 1),
        "do_sample": (settings.get("temperature") or 0) > 0,
    }
    # Greedy search has no use for these, and warns of those that the checkpoint's own settings have.
    for name in ("temperature", "top_p", "top_k"):
        if not chosen["do_sample"] or name in settings:
            chosen[name] = settings.get(name) if chosen["do_sample"] else None
    return chosen

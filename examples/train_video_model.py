"""Train a small video language model that answers questions about rendered videos by reading its visual tokens.

    python examples/train_video_model.py FOLDER --seed 1

An hour and a half on one core; needs the extra `video` for the processor. The result is a LLaVA-OneVision of 0.97
million parameters with its processor, as `sharp-compile eval` loads it; those of seeds 1 and
2 come with the package.

Twelve questions on a video are packed into one sequence: they share its visual tokens and their positions, and do
not see each other. The stages show ever more of each video, with the positions of the whole: first the object tokens
and a few others, then all of them. In the last one their number varies, as it does in models that see videos
of any length: a model that always saw as many learns to count objects by how much of the rest there is. Questions
that are answered worse are asked more often. The matrices of the layers are trained with Muon, the rest with AdamW.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import transformers
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from torch.nn import functional as F

from sharp_compile.tools.evaluation.prompts import pixel_values
from sharp_compile.tools.evaluation.questions import SPECIAL, VOCABULARY, Question, questions
from sharp_compile.tools.evaluation.scenes import FRAMES, GRID, Scene, draw, object_tokens, render

IDS = {word: number for number, word in enumerate(VOCABULARY)}
PAD, BEGIN, END, IMAGE, VIDEO = (IDS[word] for word in SPECIAL)
TOKENS = GRID * GRID  # visual tokens of a frame
QUESTIONS = 12  # packed after a video
WORDS = 5  # of a question with its answer


@dataclass(frozen=True)
class Stage:
    """A part of the training: `frames` of each video run, and some of their visual tokens are shown."""

    steps: int
    worlds: dict[str, float]  # with their shares
    frames: int
    tokens: tuple[int, ...]  # one of these numbers in each batch
    batch: int
    crowd: tuple[int, int]  # least and most objects of a crowded scene


ALL = FRAMES * TOKENS
# Each part has optimizers of its own, whose rates begin and end at 0: highest rate, stages.
PARTS = (
    (
        3e-3,
        (
            Stage(1000, {"sparse": 1.0}, 5, (12,), 32, (1, 4)),
            Stage(700, {"sparse": 0.4, "clutter": 0.25, "crowded": 0.35}, FRAMES, (64,), 32, (5, 20)),
            Stage(1700, {"sparse": 0.25, "clutter": 0.35, "crowded": 0.4}, FRAMES, (ALL,), 24, (10, 30)),
        ),
    ),
    (
        2e-3,
        (Stage(600, {"sparse": 0.35, "clutter": 0.35, "crowded": 0.3}, FRAMES, (32, 64, 128, ALL), 24, (10, 30)),),
    ),
)


@dataclass(frozen=True)
class Batch:
    """Videos with packed questions: B videos of F frames, of whose tokens N are shown."""

    video: torch.Tensor  # pixel values [B, F, 3, 32, 32]
    shown: torch.Tensor  # [B, N]: the tokens' numbers among those of the F frames
    positions: torch.Tensor  # [B, N]: their positions in the whole sequence
    ids: torch.Tensor  # [B, QUESTIONS, WORDS]: questions with their answers
    kinds: list[tuple[str, str]]  # world and kind of each question


def make_model(seed: int) -> transformers.LlavaOnevisionForConditionalGeneration:
    """The model with random weights, scaled by fan-in: with transformers' own the training stays at chance."""
    torch.manual_seed(seed)
    text = transformers.Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
        vision_use_head=False,
    )
    config = transformers.LlavaOnevisionConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        tie_word_embeddings=False,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_tokens" in name:
                weight.normal_(0, 0.5)
            elif "position_embedding" in name or "image_newline" in name:
                weight.normal_(0, 0.3)
            elif weight.ndim >= 2:
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                weight.zero_()
    return model


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word; the answers' end is the only token that a prompt doesn't have."""
    words = Tokenizer(WordLevel(IDS))
    words.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def make_processor() -> transformers.ProcessorMixin:
    """Frames as they are, between -1 and 1; a prompt is the placeholder and the question."""
    pictures = {
        "size": {"height": 32, "width": 32},
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(**pictures, image_grid_pinpoints=[[32, 32]]),
        make_tokenizer(),
        transformers.LlavaOnevisionVideoProcessor(**pictures, do_sample_frames=False),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template="<s> {% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}> {% endif %}"
        "{% endfor %}{% endfor %}",
    )


class Asked:
    """How well each kind of question is answered, which tells how often to ask it."""

    def __init__(self) -> None:
        self.accuracy: dict[tuple[str, str], float] = {}

    def note(self, kinds: list[tuple[str, str]], right: torch.Tensor) -> None:
        """Averages over about the last 200 answers of a kind."""
        for kind, each in zip(kinds, right.tolist(), strict=True):
            self.accuracy[kind] = self.accuracy.get(kind, 0.0) * 0.995 + 0.005 * each

    def choose(self, rng: np.random.Generator, scene: Scene) -> list[Question]:
        """QUESTIONS of those that can be asked on a scene."""
        possible = questions(scene)
        wrong = {question.kind: 0.1 + 1 - self.accuracy.get((scene.world, question.kind), 0.0) for question in possible}
        kinds = rng.choice(list(wrong), QUESTIONS, p=np.array(list(wrong.values())) / sum(wrong.values()))
        of_kind = {kind: [question for question in possible if question.kind == kind] for kind in wrong}
        return [of_kind[kind][rng.integers(len(of_kind[kind]))] for kind in kinds]


def make_batch(rng: np.random.Generator, stage: Stage, asked: Asked) -> Batch:
    """Random videos and questions."""
    videos, shown, positions, ids, kinds = [], [], [], [], []
    count = int(rng.choice(stage.tokens))
    for world in rng.choice(list(stage.worlds), stage.batch, p=list(stage.worlds.values())):
        scene = draw(rng, str(world), stage.crowd if world == "crowded" else None)
        chosen = asked.choose(rng, scene)
        frames, tokens = show(rng, scene, chosen, stage.frames, count)
        videos.append(render(rng, scene)[frames])
        shown.append(tokens)
        positions.append(1 + frames[tokens // TOKENS] * TOKENS + tokens % TOKENS)
        ids.append([[IDS[word] for word in (*question.words, question.answer)] for question in chosen])
        kinds += [(scene.world, question.kind) for question in chosen]
    return Batch(
        pixel_values(np.stack(videos)),
        torch.from_numpy(np.stack(shown)),
        torch.from_numpy(np.stack(positions)),
        torch.tensor(ids),
        kinds,
    )


def show(
    rng: np.random.Generator, scene: Scene, chosen: Sequence[Question], frames_run: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The frames that run, and `count` of their tokens.

    Frames in which objects appear come first; tokens that show one, and before them those that a question is about.
    """
    starts = {thing.start for thing in scene.objects}
    order = sorted(rng.permutation(FRAMES), key=lambda frame: frame not in starts)
    frames = np.sort(np.array(order[:frames_run]))
    asked = tuple({question.asked for question in chosen if question.asked is not None})
    rank = object_tokens(scene) + object_tokens(replace(scene, objects=asked)).astype(int)
    order = np.argsort(rng.random(frames_run * TOKENS) - rank[frames].reshape(-1))
    return frames, np.sort(order[:count])


def answers(model: transformers.LlavaOnevisionForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Logits after each question and each answer: [B, QUESTIONS, 2, vocabulary]."""
    whole, size = model.model, len(batch.video)
    states = whole.vision_tower(batch.video.flatten(0, 1), output_hidden_states=True).hidden_states[-1]
    features = whole.apply_pooling(whole.multi_modal_projector(states)).reshape(size, -1, 128)
    features = features.gather(1, batch.shown[..., None].expand(-1, -1, 128))
    embed = whole.get_input_embeddings()
    begin, newline = embed(torch.full((size, 1), BEGIN)), whole.image_newline.expand(size, 1, -1)
    embeddings = torch.cat([begin, features, newline, embed(batch.ids.flatten(1))], 1)
    end = 1 + FRAMES * TOKENS
    text = (end + 1 + torch.arange(WORDS)).repeat(QUESTIONS).expand(size, -1)
    ends = torch.tensor([[0], [end]]).expand(2, size)[..., None]
    hidden = whole.language_model(
        inputs_embeds=embeddings,
        attention_mask=packed_mask(batch.shown.shape[1] + 2),
        position_ids=torch.cat([ends[0], batch.positions, ends[1], text], 1),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, -QUESTIONS * WORDS :].reshape(size, QUESTIONS, WORDS, -1)[:, :, -2:])


def packed_mask(shared: int) -> torch.Tensor:
    """[1, 1, S, S], to be added: each question sees the first `shared` positions and, causally, itself."""
    question = torch.arange(QUESTIONS * WORDS) // WORDS
    sees = torch.ones(shared + len(question), shared + len(question), dtype=torch.bool).tril()
    sees[shared:, shared:] &= question[:, None] == question
    return torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))[None, None]


def optimizers(
    model: nn.Module, rate: float, steps: int
) -> Iterator[tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]:
    """Each with its schedule: a warm-up of 100 steps to the highest rate, a cosine to zero."""
    named = dict(model.named_parameters())
    matrices = [name for name, weight in named.items() if weight.ndim == 2 and ".layers." in name]
    rest = [weight for name, weight in named.items() if name not in matrices]
    muon = torch.optim.Muon(
        [named[name] for name in matrices], lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    for optimizer in (muon, torch.optim.AdamW(rest, 0.7 * rate, betas=(0.9, 0.98), weight_decay=0)):
        yield optimizer, transformers.get_cosine_schedule_with_warmup(optimizer, 100, steps)


def learn(
    model: transformers.LlavaOnevisionForConditionalGeneration,
    batch: Batch,
    optimized: Sequence[tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]],
) -> tuple[float, torch.Tensor]:
    """One step: the loss, and which answers were right ``[B, QUESTIONS]``."""
    logits = answers(model, batch)
    ends = torch.full_like(batch.ids[:, :, :1], END)
    target = torch.cat([batch.ids[:, :, -1:], ends], 2)
    loss = F.cross_entropy(logits.flatten(0, 2), target.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, schedule in optimized:
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return loss.item(), logits[:, :, 0].argmax(-1) == batch.ids[:, :, -1]


def train(
    folder: Annotated[Path, typer.Argument(help="Where to save the model.")],
    seed: Annotated[int, typer.Option(help="Of the weights, the videos and the questions.")] = 1,
    share: Annotated[float, typer.Option(help="Of the steps of each stage, for a quick try.")] = 1.0,
) -> None:
    """Train the model and save it, with its tokenizer and the accuracy at the end of each stage."""
    torch.set_num_threads(1)
    processor = make_processor()
    model, history = make_model(seed).train(), []
    columns = ("{task.description}", BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns) as progress:
        for number, (rate, stages) in enumerate(PARTS):
            rng, asked = np.random.default_rng([seed, number]), Asked()
            plan = [max(1, int(stage.steps * share)) for stage in stages]
            optimized = list(optimizers(model, rate, sum(plan)))
            bar = progress.add_task(f"part {number + 1} of {len(PARTS)}", total=sum(plan), state="")
            for stage, steps in zip(stages, plan, strict=True):
                for _ in range(steps):
                    batch = make_batch(rng, stage, asked)
                    loss, right = learn(model, batch, optimized)
                    asked.note(batch.kinds, right.flatten())
                    progress.update(bar, advance=1, state=f"loss {loss:.3f}, right {right.float().mean():.0%}")
                accuracy = {"/".join(kind): round(value, 3) for kind, value in asked.accuracy.items()}
                history.append({**asdict(stage), "steps": steps, "accuracy": accuracy})
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"seed": seed, "stages": history}, indent=1))


if __name__ == "__main__":
    typer.run(train)

"""Train the tiny model that ships inside nanopod, and write its artifacts.

    python models/nanopod-tiny/train.py --out src/nanopod/node/engines/tiny

Text comes from `corpus.py`, so nothing is downloaded. The same seed, thread count and library versions give the same
tokenizer and (up to floating point order) the same weights. The model is a Llama-layout decoder: RMSNorm, rotary
positions (halves rotated), grouped-query attention, SwiGLU, tied embeddings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import corpus
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")
PAD, BOS, EOS, USER, ASSISTANT, SYSTEM = range(6)
ROLE_IDS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] | trim }}"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EVAL_SEED_OFFSET = 1_000_003


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network, named as in a Llama config."""

    vocab_size: int = 1536
    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass of training with its own text and learning rate."""

    name: str
    steps: int
    lr: float
    seed_offset: int
    mix: tuple[int, ...]
    fable: bool
    """Whether heroes go without names (`stories.NAMELESS`)."""
    isolate: bool
    """Whether packed documents are hidden from each other, which makes copying names from the request easier."""


STAGES = (
    Stage("stories", 2200, 2.5e-3, 1, corpus.STORY_MIX, fable=False, isolate=False),
    Stage("fables", 1000, 1.6e-3, 2, corpus.DRILL_MIX, fable=True, isolate=True),
)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x`."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `x` (batch, heads, time, head_dim); the two halves of a head form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """`x` is (batch, time, hidden); so is the result. Without a mask every id sees all ids before it."""
        batch, steps, _ = x.shape
        head_dim = self.shape.head_dim
        q = rotate(self.q_proj(x).view(batch, steps, -1, head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(batch, steps, -1, head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(batch, steps, -1, head_dim).transpose(1, 2)
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).reshape(batch, steps, -1)))


class Mlp(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` is (batch, time, hidden); so is the result."""
        return cast(Tensor, self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """`x` is (batch, time, hidden); so is the result."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    """Embedding, layers and final norm; parameter names follow the Hugging Face Llama layout."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class TinyLlama(nn.Module):
    """The language model; logits use the embedding matrix (tied)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        inverse = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_position_embeddings, dtype=torch.float32), inverse).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.04 / (math.sqrt(2 * shape.num_hidden_layers) if deep else 1.0))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (batch, time, vocab) of token ids (batch, time), time <= max_position_embeddings.

        `mask` (batch, 1, time, time) says which ids see which; None means all earlier ones.
        """
        steps = ids.shape[1]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, self.cos[:steps], self.sin[:steps], mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def train_tokenizer(seed: int, vocab_size: int) -> Tokenizer:
    """Byte-level BPE from a sample of the corpus; every byte is in the vocabulary, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = (text for turns in corpus.documents(seed, 12_000) for _, text in turns)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, turns: corpus.Document) -> tuple[list[int], list[bool]]:
    """Token ids of one document, and which of them the model should learn to write (not the user's words)."""
    ids, learn = [BOS], [False]
    for role, text in turns:
        if role != "text":
            ids.append(ROLE_IDS[role])
            learn.append(False)
        body = tokenizer.encode(text, add_special_tokens=False).ids
        writes = role in ("assistant", "text")
        if writes:
            body = [*body, EOS]
        ids += body
        learn += [writes] * len(body)
    return ids, learn


def pack(
    tokenizer: Tokenizer, documents: Iterator[corpus.Document], rows: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and labels, both (rows, width); each row starts with a document, and -100 marks ids without a loss."""
    inputs = np.full((rows, width), PAD, dtype=np.int64)
    labels = np.full((rows, width), -100, dtype=np.int64)
    for row in range(rows):
        ids: list[int] = []
        learn: list[bool] = []
        while len(ids) <= width:
            more_ids, more_learn = encode(tokenizer, next(documents))
            ids += more_ids
            learn += more_learn
        inputs[row] = ids[:width]
        labels[row] = np.where(learn[1 : width + 1], ids[1 : width + 1], -100)
    return inputs, labels


def apart(ids: Tensor) -> Tensor:
    """Mask (batch, 1, time, time) in which a packed document sees its own earlier ids and no other document."""
    document = (ids == BOS).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()


def mean_loss(model: TinyLlama, inputs: Tensor, labels: Tensor, isolate: bool) -> Tensor:
    """Mean cross-entropy in nats per learned token; `isolate` keeps packed documents apart."""
    logits = model(inputs, apart(inputs) if isolate else None)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


@torch.no_grad()
def generate(model: TinyLlama, tokenizer: Tokenizer, user: str, temperature: float, seed: int = 0) -> tuple[str, int]:
    """Answer to one user turn, and its length in tokens; temperature 0 takes the likeliest token."""
    rng = torch.Generator().manual_seed(seed)
    prompt = [BOS, USER, *tokenizer.encode(user, add_special_tokens=False).ids, ASSISTANT]
    ids = list(prompt)
    while len(ids) < min(len(prompt) + 256, 512):
        logits = model(torch.tensor([ids]))[0, -1].float()
        token = (
            int(logits.argmax())
            if temperature == 0
            else int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng))
        )
        if token == EOS:
            break
        ids.append(token)
    return tokenizer.decode(ids[len(prompt) :]), len(ids) - len(prompt)


def train(model: TinyLlama, stage: Stage, inputs: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine decay, one pass over the packed rows of a stage."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=stage.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    start, warmup = time.monotonic(), min(80, stage.steps // 5)
    for step in range(stage.steps):
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, stage.steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * min(1.0, (step + 1) / warmup) * decay
        rows = slice(step * args.batch, (step + 1) * args.batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = mean_loss(model, inputs[rows], labels[rows], stage.isolate)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == stage.steps - 1:
            line = {"stage": stage.name, "step": step, "loss": round(loss.item(), 4)}
            line |= {"s": round(time.monotonic() - start, 1)}
            with args.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if (step + 1) % args.checkpoint_every == 0 or step == stage.steps - 1:
            torch.save(model.state_dict(), args.log.with_suffix(f".{stage.name}.pt"))


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(model: TinyLlama, tokenizer: Tokenizer, shape: Shape, out: Path) -> None:
    """Write config, generation config, tokenizer and float16 weights to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(shape),
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "initializer_range": 0.04,
        "torch_dtype": "float16",
        "use_cache": True,
    }
    write_json(out / "config.json", config)
    write_json(
        out / "generation_config.json",
        {
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.95,
            "max_new_tokens": 256,
        },
    )
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "pad_token": "<|pad|>",
            "additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
            "added_tokens_decoder": {
                str(index): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for index, token in enumerate(SPECIALS)
            },
        },
    )
    weights = {name: weight.detach().to(torch.float16).contiguous() for name, weight in model.named_parameters()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def check_with_transformers(model: TinyLlama, out: Path) -> float:
    """Largest difference between our logits and those of `transformers.LlamaForCausalLM` on the exported weights."""
    from transformers import LlamaForCausalLM

    peer = LlamaForCausalLM.from_pretrained(str(out), dtype=torch.float32).train(False)
    model.load_state_dict({name: weight.to(torch.float16).float() for name, weight in model.state_dict().items()})
    ids = torch.randint(6, 1000, (2, 200), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        gap = float((peer(ids).logits - model(ids)).abs().max())
    if gap > 1e-3:
        raise SystemExit(f"exported logits differ from transformers by {gap:.2e}; check names and rope of the export")
    return gap


def write_card(out: Path, facts: dict[str, object]) -> None:
    """Fill the model card's template with the facts of this run and the sha256 of each artifact."""
    names = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    rows = [
        f"| {name} | {(out / name).stat().st_size} | {hashlib.sha256((out / name).read_bytes()).hexdigest()} |"
        for name in names
    ]
    template = (Path(__file__).parent / "card_template.md").read_text(encoding="utf-8")
    for key, value in (facts | {"files": "\n".join(rows)}).items():
        template = template.replace("{{" + key + "}}", str(value))
    (out / "MODEL_CARD.md").write_text(template, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(description="train and export the tiny model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the artifacts")
    parser.add_argument("--log", type=Path, default=Path("/tmp/nanopod-tiny.jsonl"), help="losses, one object a line")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="rows of 512 tokens in a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--checkpoint-every", type=int, default=300, help="steps between raw checkpoints")
    parser.add_argument("--resume", type=Path, help="raw checkpoint to start from")
    parser.add_argument("--first-stage", type=int, default=0, help=f"0 for all, {len(STAGES)} to export a checkpoint")
    return parser.parse_args()


def main() -> None:
    """Tokenizer, packing, training, export, checks, model card."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape, width = Shape(), Shape().max_position_embeddings
    tokenizer = train_tokenizer(args.seed, shape.vocab_size)
    model = TinyLlama(shape)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    if args.resume:
        model.load_state_dict(torch.load(args.resume, weights_only=True))
    for stage in STAGES[args.first_stage :]:
        rows = stage.steps * args.batch
        documents = corpus.documents(args.seed + stage.seed_offset, 1 << 40, stage.mix, stage.fable)
        inputs, labels = pack(tokenizer, documents, rows, width)
        print(f"stage {stage.name}: packed {inputs.size} tokens", flush=True)
        train(model, stage, torch.from_numpy(inputs), torch.from_numpy(labels), args)
    model.train(False)
    export(model, tokenizer, shape, args.out)
    gap = check_with_transformers(model, args.out)
    documents = corpus.documents(args.seed + EVAL_SEED_OFFSET, 1 << 40, corpus.STORY_MIX, fable=True)
    held = pack(tokenizer, documents, 32, width)
    with torch.no_grad():
        held_out = float(mean_loss(model, torch.from_numpy(held[0]), torch.from_numpy(held[1]), isolate=True))
    steps = sum(stage.steps for stage in STAGES)
    facts: dict[str, object] = {
        "parameters": f"{parameters:,}",
        "loss": f"{held_out:.3f}",
        "steps": " + ".join(str(stage.steps) for stage in STAGES),
        "batch": args.batch,
        "tokens": f"{steps * args.batch * width:,}",
        "seed": args.seed,
        "gap": f"{gap:.1e}",
        "torch": torch.__version__.split("+")[0],
    }
    write_card(args.out, facts)
    print(f"held-out loss {held_out:.4f}, largest logit difference {gap:.1e}")
    for ask in ("Tell me a story about a fox.", "Write about rain.", "What is a nanopod?"):
        print(ask, *generate(model, tokenizer, ask, 0.0), sep="\n")


if __name__ == "__main__":
    main()

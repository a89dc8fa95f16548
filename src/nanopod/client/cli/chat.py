"""`nanopod chat MODEL PROMPT`: one question, the answer as it comes."""

from __future__ import annotations

import argparse

from nanopod.client.cli import show


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `nanopod chat`."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("prompt", metavar="PROMPT", nargs="+")
    parser.add_argument("--system", help="instructions before the prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int)
    show.add_server_options(parser)


def run(args: argparse.Namespace) -> int:
    """Stream the answer to standard output."""
    messages = [{"role": "system", "content": args.system}] if args.system else []
    body = {
        "model": args.model,
        "messages": [*messages, {"role": "user", "content": " ".join(args.prompt)}],
        **{name: value for name in ("max_tokens", "temperature", "seed") if (value := getattr(args, name)) is not None},
    }
    api = show.api_of(args)
    if args.json:
        show.print_json(api.post("/v1/chat/completions", body, retry=False))
        return 0
    for chunk in api.stream("/v1/chat/completions", {**body, "stream": True}):
        if "error" in chunk:
            from nanopod.model.errors import RemoteError

            raise RemoteError(str(chunk["error"].get("message", "the stream failed")))
        for choice in chunk.get("choices", []):
            print((choice.get("delta") or {}).get("content") or "", end="", flush=True)
    print()
    return 0

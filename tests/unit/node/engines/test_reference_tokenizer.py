"""Our tokenizer against the `tokenizers` package: each family, trained small, on random Unicode text."""

from __future__ import annotations

import json
import unicodedata
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanopod.node.engines.reference.normalize import is_bert_punctuation
from nanopod.node.engines.reference.tokenizer import Tokenizer

hf = pytest.importorskip("tokenizers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It didn't stop; we'll see, I'm sure they've gone!",
    "def main(x):\n    return x * 1234567 + 89\n\n\tprint('hello   world')  ",
    "Größe, naïve café, Ελληνικά ΣΟΦΟΣ, русский текст, 日本語のテキスト, 한국어, العربية, emoji 🙂🚀👩‍💻",
    "one two three four five six seven eight nine ten, 1 22 333 4444 ... --- !!! ??? '' \"\" «»",
] * 3

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2(prefix_space):
    tok = hf.Tokenizer(hf.models.BPE())
    tok.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tok.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(CORPUS, trainer)
    tok.add_tokens(
        ["<plain>", hf.AddedToken("<wide>", lstrip=True, rstrip=True), hf.AddedToken("word", single_word=True)]
    )
    return tok


def _split(pattern, ignore_merges, normalizer=None):
    tok = _gpt2(False)
    tok.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [
            hf.pre_tokenizers.Split(hf.Regex(pattern), "isolated"),
            hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.normalizer = normalizer
    tok.model.ignore_merges = ignore_merges
    bos = tok.token_to_id("<|bos|>")
    tok.post_processor = hf.processors.Sequence(
        [
            hf.processors.ByteLevel(trim_offsets=False),
            hf.processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]),
        ]
    )
    return tok


def _llama2(legacy):
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tok = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = hf.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *byte_tokens]
    trainer = hf.trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, limit_alphabet=60)
    tok.train_from_iterator(CORPUS, trainer)
    document = json.loads(tok.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    if legacy:
        document["pre_tokenizer"] = None
        document["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    tok = hf.Tokenizer.from_str(json.dumps(document))
    tok.post_processor = hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tok


def _bert(lowercase):
    tok = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = hf.normalizers.BertNormalizer(lowercase=lowercase)
    tok.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tok.decoder = hf.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(
        CORPUS, hf.trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tok.post_processor = hf.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tok


BUILDERS = {
    "gpt2": lambda: _gpt2(False),
    "gpt2_prefix": lambda: _gpt2(True),
    "llama3": lambda: _split(LLAMA3, True),
    "qwen2": lambda: _split(QWEN2, False, hf.normalizers.NFC()),
    "llama2": lambda: _llama2(False),
    "llama2_legacy": lambda: _llama2(True),
    "bert": lambda: _bert(True),
    "bert_cased": lambda: _bert(False),
}


@cache
def pair(family):
    theirs = BUILDERS[family]()
    return theirs, Tokenizer(json.loads(theirs.to_str()))


# Characters whose category changed after Unicode 13 are left to the data tables of either side.
CHARS = st.one_of(
    st.sampled_from(" \t\n\r'aZ09.,-_!▁\u00a0\u3000\u200b\u0301ſ"),
    st.characters(min_codepoint=0, max_codepoint=0x5FF, exclude_categories=["Cs", "Cn"]),
    st.characters(min_codepoint=0x1E00, max_codepoint=0x9FFC, categories=["L", "N", "P", "Sm", "Zs", "Mn"]),
    st.sampled_from("🙂🚀👩‍💻日本語한국어العربيةΣς"),
)
FRAGMENTS = st.sampled_from(
    [
        "<|eos|>",
        "<plain>",
        " <wide>  ",
        "word",
        "sword",
        "'S",
        "'ll",
        "<s>",
        "</s>",
        "[MASK]",
        "  ",
        "\n\n",
        "hello",
        "12345",
    ]
)
TEXT = st.lists(st.one_of(st.text(CHARS, max_size=8), FRAGMENTS), max_size=8).map("".join)


@pytest.mark.parametrize("family", list(BUILDERS))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT)
def test_same_ids_and_text(family, text):
    theirs, ours = pair(family)
    for special in (False, True):
        expected = theirs.encode(text, add_special_tokens=special).ids
        assert ours.encode(text, add_special=special) == expected
    for skip in (False, True):
        assert ours.decode(expected, skip_special=skip) == theirs.decode(expected, skip_special_tokens=skip)


@pytest.mark.parametrize("family", ["gpt2", "llama3", "llama2"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_decode_of_arbitrary_ids(family, data):
    theirs, ours = pair(family)
    ids = data.draw(st.lists(st.integers(0, ours.size - 1), max_size=12))
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("family", ["gpt2", "llama3", "llama2"])
def test_token_bytes_concatenate_to_the_text(family):
    theirs, ours = pair(family)
    text = "Größe 🙂 日本語 of the 1234\n\n  fox"
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert b"".join(map(ours.token_bytes, ids)).decode().lstrip(" ") == text


def test_text_of_a_caller_cannot_spell_a_special_token():
    _, ours = pair("gpt2")
    eos = ours.token_id("<|eos|>")
    assert eos in ours.encode("a<|eos|>b")
    plain = ours.encode("a<|eos|>b", parse_special=False)
    assert eos not in plain
    assert ours.decode(plain) == "a<|eos|>b"


def test_cut_keeps_the_frame():
    _, ours = pair("bert")
    ids = ours.encode_cut("the quick brown fox " * 40, 16)
    assert len(ids) == 16
    assert (ids[0], ids[-1]) == (2, 3)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"type": "Unigram", "vocab": []}),
        ("normalizer", {"type": "Precompiled"}),
        ("pre_tokenizer", {"type": "UnicodeScripts"}),
        ("decoder", {"type": "CTC"}),
    ],
)
def test_unsupported_parts_are_named(part, value):
    theirs, _ = pair("gpt2")
    document = json.loads(theirs.to_str())
    document[part] = value
    with pytest.raises(ValueError, match=value["type"]):
        Tokenizer(document)


def test_bert_splits_at_the_same_characters():
    """All of the first plane: the tables behind `tokenizers` are older than Python's."""
    theirs = hf.pre_tokenizers.BertPreTokenizer()
    chars = [chr(code) for code in (*range(0x21, 0xD800), *range(0xE000, 0x10000)) if not chr(code).isspace()]
    # What Python's own tables do not know yet, or know better, is not compared.
    chars = [char for char in chars if unicodedata.category(char) != "Cn"]
    splits = [char for char in chars if len(theirs.pre_tokenize_str(f"a{char}b")) == 3]
    assert [char for char in chars if is_bert_punctuation(char)] == splits

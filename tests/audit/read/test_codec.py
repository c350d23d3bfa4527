"""A Hugging Face tokenizer as a codec: ids and text, ids that it has, and pickles that load it anew."""

import pickle

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holdfast.audit.measure.view import View
from holdfast.audit.read.codec import Tokenizer
from holdfast.audit.read.columns import chunk_of
from holdfast.errors import ConfigError
from holdfast.types import Rollout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Byte-level BPE of a few merges: "a" "b" "c" and "ab", " a", and an end token that is special."""
    letters = {letter: i for i, letter in enumerate("abcĠ")}
    vocabulary = {**letters, "ab": 4, "Ġa": 5, "abc": 6}
    fast = Fast(models.BPE(vocabulary, [("a", "b"), ("Ġ", "a"), ("ab", "c")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>").save_pretrained(folder)
    return folder


def test_there_and_back(folder):
    codec = Tokenizer(folder)
    assert codec.size == 8
    assert codec.special == {7}
    assert codec.decode([[6, 5, 7], [0, 1]]) == ["abc a<end>", "ab"]
    assert codec.encode(["abc a<end>", "ab"]) == [[6, 5, 7], [4]]
    assert codec.encode([]) == []


def test_what_a_real_tokenizer_changes(folder):
    """c a b c is encoded c abc: the last three change; and c a b, c abc is as it was."""
    view = View(chunk_of([Rollout((2,), (2, 0, 1, 2, 7)), Rollout((2,), (2, 6, 7))]))
    view.codec = Tokenizer(folder)
    assert view.reencoded.changed.tolist() == [False, True, True, True, False, False, False, False]
    assert view.reencoded.moved.tolist() == [False] * 4 + [True] + [False] * 3


def test_workers_load_their_own(folder):
    codec = Tokenizer(folder)
    assert codec.size == 8
    sent = pickle.dumps(codec)
    assert len(sent) < 1000
    assert pickle.loads(sent).encode(["ab"]) == [[4]]


def test_a_folder_without_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer there .*save_pretrained writes one"):
        _ = Tokenizer(tmp_path).size

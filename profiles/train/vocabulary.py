"""WordPiece by the tokenizers library: trained here, read by the device from one JSON file.

Sentences of SST-2 are tokenised as the Penn Treebank is ("do n't"); the normaliser parts what
people type ("don't") in the same way, so that no device need know.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

PAD, UNKNOWN, FIRST, LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


def train(texts: Iterable[str], size: int, positions: int) -> Tokenizer:
    """A lower-case WordPiece tokenizer of at most ``size`` words and word pieces.

    It cuts sentences to ``positions`` tokens, [CLS] and [SEP] among them.
    """
    made = Tokenizer(WordPiece(unk_token=UNKNOWN))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("’", "'"),
            normalizers.BertNormalizer(lowercase=True),
            normalizers.Replace(Regex(r"n't\b"), " n't"),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = [PAD, UNKNOWN, FIRST, LAST]
    made.train_from_iterator(
        texts, WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{FIRST} $A {LAST}",
        special_tokens=[(each, made.token_to_id(each)) for each in (FIRST, LAST)],
    )
    made.enable_truncation(positions)
    return made


def ids(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """The token ids of ``texts``."""
    return [each.ids for each in tokenizer.encode_batch(list(texts))]

"""The tokenizer of the embedded model: one lower-case word, one token."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from organisms.grammar import BOS, EOS, PAD, UNK, vocabulary
from organisms.grammar.chat import TEMPLATE


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: case-folding, words and punctuation apart, <bos> in front, turns by a chat template.

    Decoding puts single spaces between words and none before a full stop; encode(decode(ids)) gives ids back.
    """
    ids = vocabulary()
    raw = Tokenizer(WordLevel(ids, unk_token=UNK))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    # There are no continuation pieces here: this decoder joins words and draws full stops to the word before.
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=raw, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK,
        chat_template=TEMPLATE, padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=1024,
    )  # fmt: skip

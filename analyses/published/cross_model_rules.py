"""What follows from what in the published figures of several models (`cross_model.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping

from analyses.published.rechecked import Book, Key

_CASES = 15  # back-patching: 3 families of 5 items
_BLOCKS = "layers of a model stand in another block"
_NO_ACTIVATIONS = "the activations behind it are not published"
# How many blocks the models of the refusal paper have; none of them stands in the file.
_PAPER_LAYERS: Mapping[str, int] = {
    "gemma_2b": 18,
    "llama_2_7b": 32,
    "llama_3_8b": 32,
    "qwen_1_8b": 24,
    "yi_6b": 32,
}
_SETTINGS: Mapping[Key, str] = {
    ("cross_lingual_refusal", "languages"): "a setting",
    ("papers", "hopping_too_late", "id"): "a name",
    ("papers", "hopping_too_late", "position"): "a setting",
    ("papers", "function_vectors", "id"): "a name",
    ("papers", "function_vectors", "heads"): "a setting: how many heads",
    ("papers", "refusal", "id"): "a name",
    ("papers", "refusal", "gates"): "a setting: which candidates count",
    ("papers", "two_hop_training"): "a finding in words",
}
_SHARE = "a share in per cent is from 0 to 100"


def cross_model_rules(book: Book) -> None:
    """Every rule of the file."""
    _two_hop(book)
    _refusal(book)
    _depths(book)
    _shares(book)
    _papers(book)
    for prefix, what in _SETTINGS.items():
        for key in book.under(prefix):
            book.given(key, what)


def _two_hop(book: Book) -> None:
    for model in book.names("two_hop"):
        at = ("two_hop", model)
        book.given((*at, "layers"), "an input: the number of blocks")
        book.given((*at, "of"), "an input: the number of prompts")
        layers, of = book.number(*at, "layers"), book.number(*at, "of")
        sequential, gap = book.number(*at, "sequential"), book.figure(*at, "gap")
        if sequential is not None and of is not None:
            told = f"it is a whole number of {of:g} prompts"
            book.possible((*at, "sequential"), 0 <= sequential <= of and sequential.is_integer(), told)
        if gap is not None and of is not None and layers is not None:
            sums = gap.whole_numbers(int(of))
            room = len(sums) > 0 and abs(gap.value or 0.0) < layers
            what = f"some {of:g} whole gaps of fewer than {layers:g} layers have this mean"
            of_sum = f" ({sums[0]}/{of:g})" if len(sums) == 1 else ""
            book.possible((*at, "gap"), room, what + of_sum)


def _refusal(book: Book) -> None:
    """Depth is layer / (L - 1) here, with L of the two-hop block."""
    for model in book.names("refusal_direction"):
        at = ("refusal_direction", model)
        layer, layers = book.number(*at, "0"), book.number("two_hop", model, "layers")
        if layer is not None and layers is not None:
            told = f"layers of {model} go from 0 to {layers - 1:g}"
            book.possible((*at, "0"), 0 <= layer < layers and layer.is_integer(), told)
            source = f"layer / (L - 1) = {layer:g} / {layers - 1:g}"
            book.recomputed((*at, "1"), 100 * layer / (layers - 1), source)
        else:
            book.unknown((*at, "0"), _BLOCKS)
            book.unknown((*at, "1"), _BLOCKS)
        _norm(book, (*at, "2"))
        book.given((*at, "3"), "a judgement in a word")


def _depths(book: Book) -> None:
    """Depth is layer / L here."""
    for model in book.names("sycophancy_confidence"):
        for name in book.names("sycophancy_confidence", model):
            at = ("sycophancy_confidence", model, name)
            layer, layers = book.number(*at, "0"), book.number("two_hop", model, "layers")
            if layer is not None and layers is not None:
                told = f"layers of {model} go from 0 to {layers - 1:g}"
                book.possible((*at, "0"), 0 <= layer < layers and layer.is_integer(), told)
                book.recomputed((*at, "1"), 100 * layer / layers, f"layer / L = {layer:g} / {layers:g}")
            else:
                book.unknown((*at, "0"), _BLOCKS)
                book.unknown((*at, "1"), _BLOCKS)
            _norm(book, (*at, "2"))


def _norm(book: Book, key: Key) -> None:
    value = book.number(*key)
    book.possible(key, value is not None and value > 0, f"a norm is above 0; {_NO_ACTIVATIONS}")


def _shares(book: Book) -> None:
    for model in book.names("back_patching_of_15"):
        for key in book.under(("back_patching_of_15", model)):
            value = book.number(*key)
            held = value is not None and 0 <= value <= _CASES and value.is_integer()
            book.possible(key, held, f"it is a whole number of {_CASES} cases")
    for key in book.under(("function_vectors_layer_level",)):
        value = book.number(*key)
        told = f"{_SHARE}; how many items is not published, and 0, 50 and 100 need no more than 2"
        book.possible(key, value is not None and 0 <= value <= 100, told)
    for model in book.names("cross_lingual_refusal"):
        if model in ("languages", "neutral_preserved"):
            continue
        for key in book.under(("cross_lingual_refusal", model)):
            value = book.number(*key)
            told = "of 2 prompts a language, 0, 50 or 100 per cent"
            book.possible(key, value in (0, 50, 100), told)
        languages = len(book.under(("cross_lingual_refusal", "languages")))
        printed = len(book.under(("cross_lingual_refusal", model)))
        if languages and printed != languages:
            told = f"{languages} languages are named, and {printed} shares printed"
            for key in book.under(("cross_lingual_refusal", model)):
                book.contradicts(key, None, told)
    for key in book.under(("cross_lingual_refusal", "neutral_preserved")):
        value = book.number(*key)
        book.possible(key, value is not None and 0 <= value <= 100, f"{_SHARE}; of how many is not published")


def _papers(book: Book) -> None:
    for key in book.under(("papers", "hopping_too_late", "back_patching_fixes")):
        book.unknown(key, "a range over models, whose counts are not in the file")
    at = ("papers", "function_vectors", "gpt_j")
    effects = [(key, book.number(*key)) for key in book.under((*at, "aie_top5"))]
    values = [value for _, value in effects]
    falling = None not in values and values == sorted(values, key=lambda value: -(value or 0.0))
    for key, value in effects:
        held = falling and value is not None and -1 <= value <= 1
        told = "a change of a probability is from -1 to 1, and the five stand in falling order"
        book.possible(key, held, told)
    for name in ("shuffled_10_shot", "zero_shot"):
        for key in book.under((*at, name)):
            value = book.number(*key)
            book.possible(key, value is not None and 0 <= value <= 100, _SHARE)
    _refusal_paper(book)


def _refusal_paper(book: Book) -> None:
    """The chosen direction of each model passes the gates that the paper states."""
    at = ("papers", "refusal")
    kl_below = book.number(*at, "gates", "kl_below")
    induce_above = book.number(*at, "gates", "induce_above")
    fraction = book.number(*at, "gates", "layer_below_fraction")
    for model in book.names(*at):
        if model not in _PAPER_LAYERS:
            continue
        position, layer, bypass, induce, kl = (book.number(*at, model, str(place)) for place in range(5))
        blocks = _PAPER_LAYERS[model]
        told = "a position after the instruction is counted from the end"
        book.possible((*at, model, "0"), position is not None and position < 0, told)
        if fraction is not None:
            told = f"it passes the paper's gate: below {fraction:g} of {blocks} layers"
            book.possible((*at, model, "1"), layer is not None and layer < fraction * blocks, told)
        book.possible((*at, model, "2"), bypass is not None, f"any log-odds can be; {_NO_ACTIVATIONS}")
        if induce_above is not None:
            told = f"it passes the paper's gate: above {induce_above:g}"
            book.possible((*at, model, "3"), induce is not None and induce > induce_above, told)
        if kl_below is not None:
            told = f"it passes the paper's gate: from 0 to {kl_below:g}"
            book.possible((*at, model, "4"), kl is not None and 0 <= kl < kl_below, told)
